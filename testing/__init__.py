"""The parts that the tests and the measurements share. Neither of them imports the other."""
