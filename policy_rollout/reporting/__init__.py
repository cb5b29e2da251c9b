"""What a report page is made of: markup, drawings, images. No browser and no network is needed to make one."""
