"""What backends share: which kernel a site gets, integer sites in the graph, one timestep a call, packages of code.

Native code that is kept is loaded without the rest: nothing is imported from here.
"""
