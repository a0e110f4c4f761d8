from flowfactory import UserError, hookimpl


class Tracker:
    @hookimpl
    def prepare_tracker(self):
        raise UserError("tracker 'mine' has no key; set MINE_API_KEY")


try:
    Tracker().prepare_tracker()
except UserError as error:
    print(error)
# > tracker 'mine' has no key; set MINE_API_KEY
