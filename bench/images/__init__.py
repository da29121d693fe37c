"""OCI images: import, build, layers, and the trees and disks made from them."""
