"""The whole, from the command line, with real adb clients and real containers."""
