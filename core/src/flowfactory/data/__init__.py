"""What a run learns from: prompt files, pictures and videos, batches of groups, and the cache of encoded prompts."""
