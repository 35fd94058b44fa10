"""`--mode=bench`: how fast sampling and training are here, and where the time goes."""
