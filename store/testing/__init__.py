"""What tests of stores need: small stores, hypothesis strategies, faults, a writer process to kill."""
