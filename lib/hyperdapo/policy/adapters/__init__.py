"""What a saved adapter tells of itself: a manifest for this package, a card for everybody."""
