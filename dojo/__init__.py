"""What makes a kata run: loading, guards, comparison, the learner's screen. No kata's subject matter in here."""

import warnings

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch says so at import; the katas need none
