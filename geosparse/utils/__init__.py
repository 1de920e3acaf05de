"""What has nothing to do with attention: files, progress, intervals, threads, the console."""
