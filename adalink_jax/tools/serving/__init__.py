"""Serves many adapters of one frozen base: answers requests in mixed batches."""
