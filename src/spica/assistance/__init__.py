"""What a person still has to do with the boxes they are shown, and what that costs."""
