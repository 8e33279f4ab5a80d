"""One statistic a file: a frozen config and the partial it fills."""
