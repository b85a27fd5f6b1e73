"""python -m gridlstm.verify: random networks, computed by every sweep and by a loop that shares no code with them."""
