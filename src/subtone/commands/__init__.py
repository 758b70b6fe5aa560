"""What each command does; `subtone.cli` lists them. Torch is imported only inside those that need it."""
