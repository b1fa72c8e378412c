"""One module per subcommand of `mmssl`."""
