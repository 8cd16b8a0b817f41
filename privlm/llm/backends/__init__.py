"""Where answers come from: local (weights in this process), endpoint (a server), replay (recorded answers)."""
