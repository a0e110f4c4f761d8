from flowfactory import Canvas

print(Canvas(512, 768))
# > Canvas(height=512, width=768, frames=1)
