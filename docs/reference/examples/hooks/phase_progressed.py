from flowfactory import hookimpl


class Observer:
    @hookimpl
    def phase_progressed(self, phase, done, total):
        print(f"{phase} {done}/{total}")


Observer().phase_progressed("drawing", done=64, total=192)
# > drawing 64/192
