"""The commands of an operator. None of them ships."""
