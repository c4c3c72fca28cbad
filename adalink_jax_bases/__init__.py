"""Small T5 bases that know English: folders `english` and `english_raw`."""
