"""What is made from `results/` alone, byte for byte: tables, plots and pages."""
