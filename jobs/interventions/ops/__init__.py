"""What is done to the selected part of a site's value, one small pure function each."""
