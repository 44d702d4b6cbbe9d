"""The restoration engine and the job around it: what `tubelet upscale` runs."""
