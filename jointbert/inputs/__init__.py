"""Reading and checking of user input: arrays, arguments, images, files; and warnings about suspicious poses."""
