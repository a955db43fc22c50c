"""Potentials to and from files and other programs: the only modules here that know a file or another package."""
