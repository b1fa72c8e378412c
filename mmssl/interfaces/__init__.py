"""Interfaces: all layers of a stream in, one sequence out."""
