"""The loops that are compared: for each what plain code, the engines and float64 have to do, on the same numbers."""
