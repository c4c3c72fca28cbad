"""What the user says, by gin files and flags, becomes the arguments of one call."""
