"""The trackers that come with core. Each passes what a run tells on to a service or a file; their libraries are extras."""
