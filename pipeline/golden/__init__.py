"""The golden file: its inputs, the float64 reference and the noise of rounding."""
