from flowfactory import hookimpl


class Observer:
    @hookimpl
    def prompts_encoded(self, done, total):
        print(f"{done}/{total}")


Observer().prompts_encoded(done=3, total=12)
# > 3/12
