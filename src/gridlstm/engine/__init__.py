"""The fast sweeps. They must equal ``gridlstm.scan``; other code uses them through ``dispatch``."""
