"""Pictures and the HTML page of runs (``attnrl plot``, ``attnrl timeline``, ``attnrl report``)."""
