"""The stage engine, the command line and what uses a trained experiment."""
