"""One module for each format of bases and adapters that is read or written."""
