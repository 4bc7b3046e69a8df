"""What makes a kata run: loading, guards, comparison, the learner's screen. No kata's subject matter in here."""
