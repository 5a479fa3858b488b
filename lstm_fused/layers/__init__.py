"""The modules: their options, parameters and masks."""
