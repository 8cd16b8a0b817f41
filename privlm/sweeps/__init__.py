"""Many runs: a sweep is a folder that names its run directories; workers of this machine or jobs of SLURM do the work.

The truth about a run is in its own directory, never in a scheduler: whatever was killed, the same command finishes it.
"""
