from pathlib import Path

from flowfactory import Prompt

prompt = Prompt("make it night", images=(Path("day.png"),), metadata={"objects": 2})
print([path.name for path in prompt.media], prompt.metadata["objects"])
# > ['day.png'] 2
