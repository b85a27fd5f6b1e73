"""Run the jobs of a sweep: directories, devices, processes and progress."""
