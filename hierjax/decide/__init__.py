"""From probabilities to decisions: arrays in, arrays out."""
