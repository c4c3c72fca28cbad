"""Many adapters of one frozen base, answering requests together."""
