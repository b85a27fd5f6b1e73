/* PyTorch's own oneDNN product, called directly.
 *
 * torch.mm uses it for float32 only with a process-wide switch, which would change the products of other threads too.
 * The declaration replaces <ATen/native/mkldnn/Matmul.h>, whose headers take half a minute to compile. If PyTorch has
 * no such function, this does not link, and the native product is used. A tensor is one pointer, the value that Python
 * has as Tensor._cdata.
 */
#include <exception>
#include <string>

namespace at {
class Tensor;
namespace native {
/* out = alpha x y + beta out */
void mkldnn_matmul(const Tensor &x, const Tensor &y, const Tensor &out, float beta, float alpha);
}  // namespace native
}  // namespace at

/* out = x y + beta out. Returns NULL or an error message: an exception must not reach the caller, which is not C++. */
extern "C" const char *onednn_product(void *x, void *y, void *out, float beta) {
    thread_local std::string message;
    try {
        at::native::mkldnn_matmul(*reinterpret_cast<at::Tensor *>(&x), *reinterpret_cast<at::Tensor *>(&y),
                                  *reinterpret_cast<at::Tensor *>(&out), beta, 1.0f);
        return nullptr;
    } catch (const std::exception &error) {
        message = error.what();
        return message.c_str();
    }
}
