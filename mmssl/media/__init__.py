"""Media in: decode, resample, cut; and the synthetic corpus mini."""
