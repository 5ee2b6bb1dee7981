"""Measurements of anbox-tw beside its peers, on the reader's own machine: ``make bench``."""
