"""What a build leaves to be believed: provenance, bill of materials, card, comparison."""
