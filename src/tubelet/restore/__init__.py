"""The restoration engine, and the job that upscales a video with it: `tubelet upscale`."""
