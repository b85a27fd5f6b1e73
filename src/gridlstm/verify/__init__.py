"""python -m gridlstm.verify: compare every sweep on random networks with a loop that shares no code with them."""
