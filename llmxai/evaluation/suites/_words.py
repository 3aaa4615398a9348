"""Words that the suites draw from; ours, so that the rows are under this project's licence."""

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Martin")
PLACES = ("the garden", "the kitchen", "the library", "the museum", "the office", "the station", "the theatre")
THINGS = ("book", "camera", "guitar", "hammer", "lamp", "letter", "map", "ring", "ticket", "umbrella", "violin")
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white", "yellow")
CITIES = ("Berlin", "Cairo", "Dublin", "Lima", "London", "Madrid", "Oslo", "Paris", "Rome", "Tokyo", "Vienna")
FILLERS = (
    "The weather was mild for the season.",
    "Nobody had closed the window in the hall.",
    "A train passed in the distance.",
    "The meeting took longer than planned.",
    "There was fresh bread on the table.",
    "Two neighbours talked about the road works.",
    "The clock on the wall had stopped again.",
    "Somebody had left a bicycle by the gate.",
    "The new timetable begins on Monday.",
    "It rained a little in the afternoon.",
)
