"""One module per format of bases and adapters."""
