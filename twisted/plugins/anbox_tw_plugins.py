"""The twistd commands and endpoint parsers of anbox-tw. Data only: nothing is imported before it is used."""
