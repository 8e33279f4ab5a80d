"""Other libraries' dictionary files, one format a file."""
