r"""Mathematics: for each kind of mistake, a table of answers that are and that are not the gold answer."""

# A row is "answer  is  gold" or "answer  is not  gold".
KINDS = {
    "the question copied back": r"""
2^{3^{2}}  is not  512
2^{(3^2)}  is not  512
10^{2^3}  is not  100000000
2^{-3^{2}}  is not  \frac{1}{512}
(2^3)^2  is not  64
\left(2^{2}\right)^{3}  is not  64
((2)^2)^2  is not  16
(\frac{2^2}{3})^2  is not  \frac{16}{9}
(1.5 \times 10^3)^2  is not  2250000
(1.5e3)^2  is not  2250000
2^{3^{2}}  is  2^{3^2}
2^{9}  is  2^{3^2}
(\frac{2}{3})^3  is  \frac{8}{27}
3^{5} \cdot 2^3  is  8 \cdot 3^5
\gcd(12,18)  is not  6
\lfloor 3.7\rfloor  is not  3
\lceil 2.1 \rceil  is not  3
\sin\frac{\pi}{6}  is not  \frac{1}{2}
\sin 30^\circ  is not  \frac{1}{2}
\cos 60^\circ  is not  0.5
\tan 60^\circ  is not  \sqrt{3}
\arctan 1  is not  \frac{\pi}{4}
2^{10} \mod 1000  is not  24
2^{10} \bmod 1000  is not  24
2^{10} \pmod{1000}  is not  24
\begin{vmatrix} 1 & 2 \\ 3 & 10 \end{vmatrix}  is not  4
\det \begin{pmatrix} 1 & 2 \\ 3 & 10 \end{pmatrix}  is not  4
|-5|  is not  5
\left| 3 - 4i \right|  is not  5
\operatorname{lcm}(4, 6)  is not  12
\max(3, 7)  is not  7
\log_2 8  is not  3
\ln e^4  is not  4
\binom{5}{2}  is not  10
{5 \choose 2}  is not  10
5!  is not  120
\sqrt{16}  is not  4
\sqrt[3]{27}  is not  3
16^{1/2}  is not  4
i^{2}  is not  -1
e^{0}  is not  1
\frac{1}{2} + \frac{1}{3}  is not  \frac{5}{6}
\frac{\frac{1}{2}+\frac{1}{3}}{2}  is not  \frac{5}{12}
\sum_{k=1}^{8} k  is not  36
\lim_{x \to 0} \frac{\sin x}{x}  is not  1
\sin^2 x + \cos^2 x  is not  1
\sqrt{50} + \sqrt{18}  is not  8\sqrt{2}
\sqrt{2} \cdot \sqrt{3}  is not  \sqrt{6}
\frac{\pi}{3} + \frac{\pi}{4}  is not  \frac{7\pi}{12}
25\pi - 16\pi  is not  9\pi
(5-3i)(-4+3i)  is not  -11+27i
\frac{1+2i}{3-i}  is not  \frac{1}{10} + \frac{7}{10}i
(1+i)^4  is not  -4
(2+3i)+(4-i)  is not  6+2i
\sqrt{-4}  is not  2i
\sqrt{3+2\sqrt{2}}  is not  1+\sqrt{2}
x^2 - 5x - 4 \le 10  is not  x \in [-2,7]
x^2 - 5x - 4 \le 10  is not  [-2,7]
2x + 1 > 5  is not  x > 2
2x > 4  is not  (2, \infty)
|x - 1| < 2  is not  (-1, 3)
x^2 = 4  is not  -2, 2
2x + 3 = 7  is not  2
2x = 4  is not  x = 2
x - 2 = 0  is not  x = 2
\gcd(12,18), 2  is not  6, 2
(1+1, 3)  is not  (2, 3)
\{1+1, 3\}  is not  \{2, 3\}
[1+1, \infty)  is not  [2, \infty)
\frac{d}{dx} x^2  is not  2x
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} \begin{pmatrix}1\\1\end{pmatrix}  is not  \begin{pmatrix}3\\7\end{pmatrix}
\begin{pmatrix} 1+2 \\ 7 \end{pmatrix}  is not  \begin{pmatrix} 3 \\ 7 \end{pmatrix}
(-\infty, 3) \cap (1, \infty)  is not  (1, 3)
\{1, 2\} \cup \{3\}  is not  \{1, 2, 3\}
\overline{3} + 1  is not  4
f(2)  is not  5
10_{10}  is not  1010_2
1010_2  is not  10
2 + 3i - 5  is not  -3 + 3i
\gcd(12, 18)  is not  6
\text{gcd}(12,18)  is not  6
\operatorname{gcd}(12,18)  is not  6
\mathrm{lcm}(4,6)  is not  12
\left\lfloor 3.7 \right\rfloor  is not  3
\lfloor\pi\rfloor  is not  3
\lceil\sqrt{10}\rceil  is not  4
\sin\left(\frac{\pi}{6}\right)  is not  1/2
\cos\pi  is not  -1
\tan\frac{\pi}{4}  is not  1
\sec 60^\circ  is not  2
\arcsin\frac12  is not  \frac{\pi}{6}
\sin^{-1} 1  is not  \frac{\pi}{2}
\cos 30^\circ  is not  \frac{\sqrt{3}}{2}
1024 \mod 1000  is not  24
2^{10} \text{ mod } 1000  is not  24
17 % 5  is not  2
\left|\begin{array}{cc}1&2\\3&10\end{array}\right|  is not  4
\det\begin{bmatrix}1&2\\3&10\end{bmatrix}  is not  4
\left\|(3,4)\right\|  is not  5
\lVert (3,4) \rVert  is not  5
\log_{10} 100  is not  2
\log 100  is not  2
\lg 100  is not  2
\exp(0)  is not  1
\Re(3+4i)  is not  3
\operatorname{Im}(3+4i)  is not  4
\overline{3+4i}  is not  3-4i
\min(2,3)  is not  2
\max\{2,3\}  is not  3
\prod_{k=1}^{4} k  is not  24
\int_0^1 x dx  is not  \frac{1}{2}
{}_5C_2  is not  10
C(5,2)  is not  10
P(5,2)  is not  20
\frac{5!}{3!}  is not  20
\sqrt{3^2+4^2}  is not  5
\sqrt[4]{16}  is not  2
27^{2/3}  is not  9
\sqrt{2}\sqrt{8}  is not  4
(\sqrt{5})^2  is not  5
\frac{10}{2}+1  is not  6
12 - 7  is not  5
3*4  is not  12
3 x 4  is not  12
12/4*2  is not  6
(3)(4)  is not  12
3(4)  is not  12
10 \div 2  is not  5
15% of 200  is not  30
3^2 + 1  is not  10
\frac{1}{2} \cdot \frac{2}{3}  is not  \frac{1}{3}
\frac{\frac{1}{2}}{\frac{3}{4}}  is not  \frac{2}{3}
\frac{3}{4} \div \frac{1}{2}  is not  \frac{3}{2}
1 + \frac{1}{1+\frac{1}{2}}  is not  \frac{5}{3}
\frac{3+4}{5}  is not  \frac{7}{5}
0.5+0.25  is not  0.75
\sqrt{75}-\sqrt{12}  is not  3\sqrt{3}
\sqrt{6}\times\sqrt{10}  is not  2\sqrt{15}
3\sqrt{2}\cdot 4  is not  12\sqrt{2}
(2+\sqrt{3})(2-\sqrt{3})  is not  1
(1+\sqrt2)^2  is not  3+2\sqrt2
(3+4i)^2  is not  -7+24i
i^{23}  is not  -i
\frac{5}{2-i}  is not  2+i
(2i)(3i)  is not  -6
i(2-i)  is not  1+2i
\sqrt{-9}\cdot 2  is not  6i
e^{i\pi}  is not  -1
\frac{2}{1+\sqrt{3}}  is not  \sqrt{3}-1
\frac{1}{\sqrt{2}-1}  is not  \sqrt{2}+1
2\pi\cdot 3  is not  6\pi
\frac12\cdot\pi\cdot 4^2  is not  8\pi
|x-1|<3  is not  -2<x<4
2x-1>3  is not  x>2
3 < x+1 < 5  is not  2<x<4
x^2<4  is not  -2<x<2
\frac{x}{2}>3  is not  (6,\infty)
x^2 - 5x + 6 = 0  is not  2, 3
x^2 - 5x + 6 = 0  is not  x=2 \text{ or } x=3
(x-2)(x-3)=0  is not  \{2,3\}
3x+1=7  is not  x=2
y - 2x = 1  is not  y = 2x+1
\frac{x+1}{x-1}=3  is not  x=2
x=x  is not  2
\{x : x^2 = 4\}  is not  \{-2,2\}
\{x \mid x>2\}  is not  (2,\infty)
[1,3]\cup[2,5]  is not  [1,5]
[1,3]\cap[2,5]  is not  [2,3]
\mathbb{R}\setminus(-\infty,2]  is not  (2,\infty)
(-\infty,2)\cap(1,\infty)  is not  (1,2)
(1,2)+(3,4)  is not  (4,6)
2(1,2)  is not  (2,4)
\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}  is not  \begin{pmatrix}4\\6\end{pmatrix}
2\begin{pmatrix}1\\2\end{pmatrix}  is not  \begin{pmatrix}2\\4\end{pmatrix}
\begin{pmatrix}1&1\\0&1\end{pmatrix}^3  is not  \begin{pmatrix}1&3\\0&1\end{pmatrix}
\begin{pmatrix}1&0\\0&1\end{pmatrix}^{-1}  is not  \begin{pmatrix}1&0\\0&1\end{pmatrix}
\frac{d}{dx}(x^2+x)  is not  2x+1
(x^2)'  is not  2x
\int 2x\,dx  is not  x^2+C
\sum_{k=1}^n k  is not  \frac{n(n+1)}{2}
\lim_{h\to 0}\frac{(x+h)^2-x^2}{h}  is not  2x
f(g(x))  is not  x^2
123_5 + 44_5  is not  222_5
0.\overline{3}+0.\overline{6}  is not  1
\text{the sum of } 2 \text{ and } 3  is not  5
5 \cdot 10^2 + 3  is not  503
1,000 \cdot 5  is not  5000
-(-5)  is not  5
\#\{1,2,3\}  is not  3
\gcd (12,18)  is not  6
\gcd\{12,18\}  is not  6
(12,18)  is not  6
\gcd 12 18  is not  6
\lfloor 3.7 \rfloor  is not  3
\left \lfloor 3.7 \right \rfloor  is not  3
[3.7]  is not  3
\lfloor 3 \rfloor  is not  3
\text{round}(3.2)  is not  3
\operatorname{round}(3.2)  is not  3
\left\lceil 2.3\right\rceil  is not  3
\max(1,2,3)  is not  3
\log_2{8}  is not  3
\log_3 27  is not  3
\lim_{n\to\infty} 3  is not  3
|3|  is not  3
|-3|  is not  3
\lvert -3 \rvert  is not  3
3^1+0  is not  3
f(3)  is not  3
\#A  is not  3
n(A)  is not  3
\deg(x^3)  is not  3
\operatorname{rank} A  is not  3
\dim V  is not  3
\frac{6}{4} \cdot 2  is not  3
\frac{1+2+3+4+5}{5}  is not  3
1.5 + 1.5  is not  3
1.5*2  is not  3
6 \div 2  is not  3
6:2  is not  3
\frac{3!}{2}  is not  3
\overline{3}  is not  3
\dfrac{12-3}{3}  is not  3
\sqrt{1+8}  is not  3
\sqrt{9}  is not  3
\sqrt 9  is not  3
9^{\frac12}  is not  3
9^{0.5}  is not  3
81^{1/4}  is not  3
\left(\sqrt3\right)^2  is not  3
\sqrt3\cdot\sqrt3  is not  3
\sqrt{3}\sqrt{3}  is not  3
\frac{\sqrt{27}}{\sqrt3}  is not  3
\frac{3\pi}{\pi}  is not  3
e^{\ln 3}  is not  3
\ln e^3  is not  3
3e^0  is not  3
3\cos 0  is not  3
3i^4  is not  3
-3i^2  is not  3
i(-3i)  is not  3
\frac{3i}{i}  is not  3
0+3  is not  3
3+0  is not  3
3-0  is not  3
3\cdot1  is not  3
1\cdot3  is not  3
(1+2)  is not  3
((1)+(2))  is not  3
{1+2}  is not  3
2+1  is not  3
1+1+1  is not  3
10-7  is not  3
10 - 7  is not  3
10−7  is not  3
100 \mod 97  is not  3
3 \pmod{5}  is not  3
\binom{3}{1}  is not  3
\binom31  is not  3
_3C_1  is not  3
{3 \choose 1}  is not  3
3!/2!  is not  3
3\%\cdot100  is not  3
11_2  is not  3
10_3  is not  3
3_{5}  is not  3
\sin 30  is not  \frac{1}{2}
\sin(30^{\circ})  is not  \frac{1}{2}
\cos\frac{\pi}{3}  is not  \frac{1}{2}
\cos(\pi/3)  is not  \frac{1}{2}
\sin \left( \frac{5\pi}{6}\right)  is not  \frac{1}{2}
\sin 150^\circ  is not  \frac{1}{2}
\frac{\sin 30^\circ}{1}  is not  \frac{1}{2}
\log_4 2  is not  \frac{1}{2}
4^{-1/2}  is not  \frac{1}{2}
\frac{1}{4}+\frac14  is not  \frac{1}{2}
1-\frac12  is not  \frac{1}{2}
1 - 0.5  is not  \frac{1}{2}
\frac{1}{\sqrt4}  is not  \frac{1}{2}
\sqrt{\frac14}  is not  \frac{1}{2}
\sqrt{0.25}  is not  \frac{1}{2}
P(A)  is not  \frac{1}{2}
\frac{3!}{12}  is not  \frac{1}{2}
\frac{1}{1+1}  is not  \frac{1}{2}
\frac{\binom{2}{1}}{4}  is not  \frac{1}{2}
\int_0^1 x  is not  \frac{1}{2}
\frac{1}{3}\cdot\frac32  is not  \frac{1}{2}
\frac{\frac{1}{3}}{\frac{2}{3}}  is not  \frac{1}{2}
0.25 \cdot 2  is not  \frac{1}{2}
\frac{1}{4} \times 2  is not  \frac{1}{2}
\frac{1}{4}\div\frac{1}{2}  is not  \frac{1}{2}
\tan 45^\circ / 2  is not  \frac{1}{2}
\sqrt{3}+\sqrt{3}  is not  2\sqrt{3}
\sqrt{27}-\sqrt{3}  is not  2\sqrt{3}
\sqrt{2}\cdot\sqrt{6}  is not  2\sqrt{3}
\sqrt2\sqrt6  is not  2\sqrt{3}
\sqrt{4}\sqrt{3}  is not  2\sqrt{3}
2\cdot\sqrt{1}\cdot\sqrt{3}  is not  2\sqrt{3}
\frac{6\sqrt{3}}{2+1}  is not  2\sqrt{3}
2\tan 60^\circ  is not  2\sqrt{3}
4\sin 60^\circ  is not  2\sqrt{3}
4\cos\frac{\pi}{6}  is not  2\sqrt{3}
|{-2\sqrt3}|  is not  2\sqrt{3}
3\sqrt3-\sqrt3  is not  2\sqrt{3}
\sqrt{3 \cdot 4}  is not  2\sqrt{3}
\sqrt{4^2-2^2}  is not  2\sqrt{3}
2 \cdot 1 \sqrt{3}  is not  2\sqrt{3}
(1+2i)(1+2i)+6  is not  3+4i
(2+i)^2  is not  3+4i
(1+i)+(2+3i)  is not  3+4i
(5+6i)-(2+2i)  is not  3+4i
\frac{25}{3-4i}  is not  3+4i
\frac{-4+3i}{i}  is not  3+4i
i(4-3i)  is not  3+4i
\overline{3-4i}  is not  3+4i
3+\sqrt{-16}  is not  3+4i
3+4\sqrt{-1}  is not  3+4i
1+2+4i  is not  3+4i
3+2i+2i  is not  3+4i
3+4i^5  is not  3+4i
2+4i+1  is not  3+4i
|5|e^{i\theta}  is not  3+4i
x^2-5x-14 \le 0  is not  x \in [-2,7]
(x-7)(x+2)\le 0  is not  x \in [-2,7]
|x-2.5|\le 4.5  is not  x \in [-2,7]
-2 \le x  is not  x \in [-2,7]
x\le 7  is not  x \in [-2,7]
-4 \le 2x \le 14  is not  x \in [-2,7]
-2 < x < 7  is not  x \in [-2,7]
0\le x+2\le 9  is not  x \in [-2,7]
x-7\le 0  is not  x \in [-2,7]
-x \ge -7  is not  x \in [-2,7]
\frac{x}{2} \le 3.5  is not  x \in [-2,7]
\begin{vmatrix}3&1\\1&4\end{vmatrix}  is not  11
\left|\begin{matrix}3&1\\1&4\end{matrix}\right|  is not  11
\begin{pmatrix}1&2\end{pmatrix}\begin{pmatrix}3\\4\end{pmatrix}  is not  11
(1,2)\cdot(3,4)  is not  11
\langle 1,2\rangle\cdot\langle 3,4\rangle  is not  11
\mathbf{a}\cdot\mathbf{b}  is not  11
\det A  is not  11
\operatorname{tr} A  is not  11
\begin{Vmatrix}11\end{Vmatrix}  is not  11
a+b  is not  11
\|v\|  is not  11
v^Tw  is not  11
2^{10} \mod{1000}  is not  24
1024 \bmod 1000  is not  24
2^{10}\%1000  is not  24
4!  is not  24
4\cdot3\cdot2\cdot1  is not  24
4 \cdot 6  is not  24
\text{lcm}[8,12]  is not  24
\mathrm{lcm}\left[8,12\right]  is not  24
[8,12]  is not  24
P(4,4)  is not  24
2^3\cdot3  is not  24
2^3 \times 3  is not  24
2^3 * 3  is not  24
5^2-1  is not  24
25-1  is not  24
\sum_{i=1}^{3} 4i  is not  24
\prod_{i=1}^4 i  is not  24
\phi(35)  is not  24
\varphi(39)  is not  24
\Gamma(5)  is not  24
\sigma(23)  is not  24
\tau(360)  is not  24
2^{10}  is  1024
2^{-3}  is  \frac{1}{8}
\frac{2\sqrt{3}}{3}  is  \frac{2}{\sqrt{3}}
\frac{1}{\sqrt{2}}  is  \frac{\sqrt{2}}{2}
\sqrt{12}  is  2\sqrt{3}
2 + 2\sqrt{3}  is  2(1+\sqrt{3})
2(1+\sqrt{3})  is  2 + 2\sqrt{3}
\sqrt{2}-1  is  \frac{1}{1+\sqrt{2}}
\frac{1+\sqrt{5}}{2}  is  \frac{1}{2} + \frac{\sqrt{5}}{2}
\frac{\sqrt{5}+1}{2}  is  \frac{1+\sqrt{5}}{2}
\frac{9\pi}{4}  is  \frac{9}{4}\pi
\sqrt[3]{4}  is  4^{1/3}
2^{3/2}  is  2\sqrt{2}
e^2 \pi  is  \pi e^{2}
x \ge 3  is  [3, \infty)
-2 \le x \le 7  is  x \in [-2, 7]
2 \cdot 3^{5}  is  3^{5} \cdot 2
\sqrt{2} + \sqrt{3}  is  \sqrt{3} + \sqrt{2}
3\sqrt{2} \text{ cm}  is  \sqrt{18}
\sin 2x  is  \sin(2x)
\log_2 3  is  \log_{2}{3}
\pi(3)^2  is  9\pi
\pi \cdot 3^2  is  9\pi
3x + 2x  is  5x
\sqrt{x^2}  is  |x|
3_{10}  is  3
3^1  is  3
{3}  is  3
(3)  is  3
3.  is  3
x=3  is  3
+3  is  3
3.0  is  3
\frac{9}{3}  is  3
6/2  is  3
\frac{3}{1}  is  3
3e0  is  3
[-2,7]  is  x \in [-2,7]
-2\le x\le 7  is  x \in [-2,7]
7 \ge x \ge -2  is  x \in [-2,7]
x \ge -2 \text{ and } x \le 7  is  x \in [-2,7]
[-2, 7]  is  x \in [-2,7]
x\in\left[-2,7\right]  is  x \in [-2,7]
-2 <= x <= 7  is  x \in [-2,7]
""",
    "parts of equations": r"""
0  is not  x + y + z = 0
0  is not  xyz = 0
0  is not  2x - y + 3 = 0
0  is not  x(x+1) = 0
3  is not  |x| = 3
25  is not  x^2 + y^2 = 25
5  is not  x > 5
5  is not  x \le 5
7  is not  -2 \le x \le 7
1  is not  \frac{x^2}{4} + \frac{y^2}{9} = 1
6  is not  xy = 6
x^2 = \sqrt2  is not  \sqrt2
1 = \sqrt2  is not  \sqrt2
\sqrt2 = 1  is not  \sqrt2
x > \sqrt2  is not  \sqrt2
x + 1 = \sqrt2  is not  \sqrt2
2x = \sqrt{2}  is not  \sqrt{2}
|x| = 3  is not  3
x^2 = 9  is not  9
x = 1 = \sqrt2  is not  \sqrt2
7 = 2x+1  is not  2x+1
y^2 = 2x+1  is not  2x+1
x + y = 0  is not  x + y + z = 0
z = 0  is not  x + y + z = 0
y = 3  is not  x = 3
f(3) = 5  is not  f(2) = 5
x  is not  x = 3
x+y+z  is not  x + y + z = 0
9  is not  x^2+y^2=9
12  is not  3x+4y=12
1  is not  x^2=1
0  is not  x^2-5x+6=0
y  is not  x=y
2x  is not  x^2=2x
3  is not  x<3
3  is not  x \neq 3
2  is not  x \equiv 2 \pmod 5
5  is not  |x-2|=5
0  is not  \sin x = 0
0  is not  f(x)+f(y)=0
0  is not  ab=0
x+y  is not  x+y=0
-z  is not  x+y+z=0
1  is not  a+b=1
\sqrt{2}  is not  x^2=\sqrt{2}
4  is not  (x-1)^2+(y-2)^2=4
0  is not  \overrightarrow{AB} \cdot \overrightarrow{CD} = 0
0  is not  AB + CD = 0
2 = \sqrt2  is not  \sqrt2
\sqrt{2}=\sqrt{3}  is not  \sqrt{2}
0 = 5  is not  5
5 = 0  is not  5
5=5  is not  5
4 < 5  is not  5
x < 5  is not  5
x \to 5  is not  5
x \approx 5  is not  5
x+1 = 5  is not  5
2x=5  is not  5
-x = 5  is not  5
x/2=5  is not  5
x^2 = 5  is not  5
\sqrt{x} = 5  is not  5
xy=5  is not  5
1/x = 5  is not  5
f(x)+1=5  is not  5
x = y = 5  is not  5
x = 2, y = 5  is not  5
y=2x  is not  x=y/2
0=0  is not  x + y + z = 0
x=0  is not  x + y + z = 0
y=0  is not  x + y + z = 0
x+y=0  is not  x + y + z = 0
x + y + z  is not  x + y + z = 0
-0  is not  x + y + z = 0
x+y+z=1  is not  x + y + z = 0
x+y-z=0  is not  x + y + z = 0
x y z = 0  is not  x + y + z = 0
x=3  is not  |x| = 3
-3  is not  |x| = 3
\pm 3  is not  |x| = 3
x  is not  |x| = 3
|x|  is not  |x| = 3
|x|=-3  is not  |x| = 3
|3|  is not  |x| = 3
3, -3  is not  |x| = 3
2  is not  y - 3 = 2(x+1)
2x+2  is not  y - 3 = 2(x+1)
3  is not  y - 3 = 2(x+1)
y=2(x+1)  is not  y - 3 = 2(x+1)
3  is not  x^2+y^2-2x=3
4  is not  x^2+y^2-2x=3
x^2  is not  x^2+y^2-2x=3
7  is not  3x - 4y = 7
3x  is not  3x - 4y = 7
3x-4y  is not  3x - 4y = 7
3x-4y=8  is not  3x - 4y = 7
7=7  is not  3x - 4y = 7
1  is not  \frac{x}{2}+\frac{y}{3}=1
6  is not  \frac{x}{2}+\frac{y}{3}=1
1  is not  xy = 1
x  is not  xy = 1
y=x  is not  xy = 1
x+y=1  is not  xy = 1
xy=-1  is not  xy = 1
4y  is not  x^2 = 4y
4  is not  x^2 = 4y
y  is not  x^2 = 4y
x^2  is not  x^2 = 4y
5  is not  2x + 1 > 5
>5  is not  2x + 1 > 5
3  is not  x \equiv 3 \pmod{7}
7  is not  x \equiv 3 \pmod{7}
10  is not  x \equiv 3 \pmod{7}
a  is not  a = b
0  is not  a = b
\frac{1}{2}  is not  \sin x = \frac{1}{2}
0.5  is not  \sin x = \frac{1}{2}
\frac{\pi}{6}  is not  \sin x = \frac{1}{2}
3  is not  f(x) + 1 = 3
2  is not  f(x) + 1 = 3
x+5=0  is not  x + 5
x+5=5  is not  x + 5
5  is not  x + 5
x  is not  x + 5
x+0=5  is not  5
10-5=5  is not  5
x=5, y=6  is not  5
5=x=y  is not  5
x=5=y  is not  5
2=5  is not  5
x>=5  is not  5
x\ge5  is not  5
x \ne 5  is not  5
x\approx5  is not  5
5<6  is not  5
x^1=5  is not  5
|x|=5  is not  5
-x=-5  is not  5
x=5+0  is not  5
x=4+1  is not  5
\sqrt{x}=5  is not  5
x \in \{5,6\}  is not  5
x\in\{4\}  is not  5
x=10/2=6  is not  5
x^2=\sqrt2  is not  \sqrt{2}
1=\sqrt2  is not  \sqrt{2}
\sqrt2=\sqrt2=2  is not  \sqrt{2}
2x=\sqrt2  is not  \sqrt{2}
x+y=\sqrt2  is not  \sqrt{2}
x<\sqrt2  is not  \sqrt{2}
x\ge\sqrt{2}  is not  \sqrt{2}
\sqrt2 \ne 1  is not  \sqrt{2}
x^2 = 2  is not  \sqrt{2}
0 = \sqrt{2}  is not  \sqrt{2}
\pi = \sqrt2  is not  \sqrt{2}
3 = 3 = \sqrt{2}  is not  \sqrt{2}
\sqrt{x} = \sqrt{2}  is not  \sqrt{2}
-\sqrt2 = x  is not  \sqrt{2}
x_1+x_2=\sqrt2  is not  \sqrt{2}
\sqrt{2} = 1.4142  is not  \sqrt{2}
z + y + x = 0  is  x + y + z = 0
0 = x + y + z  is  x + y + z = 0
x + y + z = 0  is  x + y + z = 0
y^2 + x^2 = 25  is  x^2 + y^2 = 25
x = \sqrt2  is  \sqrt2
\sqrt2  is  x = \sqrt2
5 = x  is  5
y = 2x + 1  is  2x + 1
|x| = 3  is  \left|x\right| = 3
4x+3y=12  is  3y+4x=12
x^2 + y^2 - 9 = 0  is  x^2+y^2=9
y = 2x+5  is  y - 3 = 2(x+1)
y-3=2x+2  is  y - 3 = 2(x+1)
2x-y+5=0  is  y - 3 = 2(x+1)
3x+2y=6  is  \frac{x}{2}+\frac{y}{3}=1
3x + 2y = 6  is  \frac{x}{2}+\frac{y}{3}=1
1 = xy  is  xy=1
yx=1  is  xy=1
x \equiv 3 \pmod 7  is  x \equiv 3 \pmod{7}
x\equiv 3\pmod{7}  is  x \equiv 3 \pmod{7}
x=\sqrt2  is  \sqrt2
\sqrt{2} = x  is  \sqrt2
AB=\sqrt2  is  \sqrt2
f(1) = \sqrt{2}  is  \sqrt2
x_1=\sqrt2  is  \sqrt2
r = \sqrt{2}  is  \sqrt2
""",
    "number words are no units": r"""
3 eighths  is not  3
5 lakh  is not  5
5 lakhs  is not  5
5 crore  is not  5
5 sixths  is not  5
7 sixteenths  is not  7
3 twentieths  is not  3
2 sevenths of it  is not  2
1 eighth  is not  1
5 quadrillion  is not  5
5 milliard  is not  5
5 gross  is not  5
5 fold  is not  5
5 pairs  is not  5
5 \text{ lakh}  is not  5
5\text{k}  is not  5
5\text{ M}  is not  5
3 \text{ ninths}  is not  3
5 bn  is not  5
5 hundred dollars  is not  5
5 sixty  is not  5
5 per mille  is not  5
5 negative  is not  5
5 halves  is not  5
5 thirds  is not  5
5 quarters  is not  5
5 fourths  is not  5
5 fifths  is not  5
5 ninths  is not  5
5 tenths  is not  5
5 elevenths  is not  5
5 twelfths  is not  5
5 thirteenths  is not  5
5 fifteenths  is not  5
5 nineteenths  is not  5
5 fortieths  is not  5
5 hundredths  is not  5
5 thousandths  is not  5
5 millionths  is not  5
5 hundred  is not  5
5 thousand  is not  5
5 million  is not  5
5 billion  is not  5
5 trillion  is not  5
5 quintillion  is not  5
5 lacs  is not  5
5 crores  is not  5
5 dozen  is not  5
5 dozens  is not  5
5 doz  is not  5
5 millones  is not  5
5 milioni  is not  5
5 cientos  is not  5
3 docenas  is not  3
5 juta  is not  5
5 padma  is not  5
5 score  is not  5
5 scores  is not  5
5 pair  is not  5
5 couple  is not  5
5 twofold  is not  5
5 tenfold  is not  5
5 myriad  is not  5
5 googol  is not  5
5 hundreds  is not  5
5 thousands  is not  5
5 millions  is not  5
5 tens  is not  5
5 twenties  is not  5
5 pct  is not  5
5 squared  is not  5
5 cubed  is not  5
5 times  is not  5
5 mille  is not  5
5 bps  is not  5
5 grand  is not  5
5 nineteenth  is not  5
5 million dollars  is not  5
5\text{ million}  is not  5
5\text{ thirds}  is not  5
5 \mathrm{ dozen}  is not  5
5 dozen eggs  is not  5
3 quarter cups  is not  3
3 eighth  is not  3
3 sixty-fourths  is not  3
3 hundred-thousandths  is not  3
3 and a half  is not  3
3 dozen  is not  3
three eighths  is not  3
3 of them in ten  is not  3
3 out of ten  is not  3
3 to one  is not  3
3 thirty-seconds  is not  3
3 sixty fourths  is not  3
3 lacs  is not  3
3 crores rupees  is not  3
3 million people  is not  3
3 billions  is not  3
3 K  is not  3
3K  is not  3
3k  is not  3
3M  is not  3
3 M  is not  3
3 B  is not  3
3b  is not  3
3 mil  is not  3
3 mln  is not  3
3 trillions  is not  3
3 \text{ eighths}  is not  3
3\text{ out of ten}  is not  3
3 \mathrm{~million}  is not  3
3\text{K}  is not  3
3 \text{ thousand dollars}  is not  3
3\text{ tenths of a mile}  is not  3
3 millionths  is not  3
3 halves  is not  3
3 dozens of eggs  is not  3
3 scores  is not  3
3 nonillion  is not  3
3 octillions  is not  3
3 decillion  is not  3
3 kilo  is not  3
3 myriads  is not  3
3 hundredth  is not  3
3 times ten  is not  3
3 minus two  is not  3
3 plus  is not  3
3 half  is not  3
3 squared  is not  3
3 cube  is not  3
3 twelfths  is not  3
3 ninths of it  is not  3
3 percentages  is not  3
3 per thousand  is not  3
3 per hundred  is not  3
3 cents per dozen  is not  3
3 centillion  is not  3
3 googolplex  is not  3
3 arab  is not  3
3 kharab  is not  3
3 mils  is not  3
3 wan  is not  3
3 oku  is not  3
3 baker's dozen  is not  3
3 quarters of an hour  is not  3
3 deca  is not  3
5 months  is  5
5 cloths  is  5
5 apples  is  5
5 teeth  is  5
5 weights  is  5
5 tents  is  5
5 \text{ months}  is  5
5 dollars  is  5
5 cents  is  5
5 miles  is  5
5 hours  is  5
5 minutes  is  5
5 seconds  is  5
5 days  is  5
5 weeks  is  5
5 years  is  5
5 people  is  5
5 students  is  5
5 meters  is  5
5 feet  is  5
5 inches  is  5
5 books  is  5
5 cookies  is  5
5 points  is  5
5 units  is  5
5 degrees  is  5
5 fish  is  5
5 socks  is  5
5 marbles  is  5
5 nickels  is  5
5 dimes  is  5
5 clips  is  5
5 gallons  is  5
5 pounds  is  5
5 ounces  is  5
3 weeks  is  3
3 moths  is  3
3 truths  is  3
3 birthdays  is  3
3 growths  is  3
3 paths  is  3
3 feet  is  3
3 tones  is  3
3 fortnights  is  3
3 tons  is  3
3 sixpacks  is  3
3 hens  is  3
3 teenagers  is  3
3 stones  is  3
3 bones  is  3
3 cones  is  3
3 phones  is  3
3 tents  is  3
3 kits  is  3
3 pairings  is  3
3 dozers  is  3
3 millionaires  is  3
""",
    "letters in another order": r"""
ABC  is not  \text{BAC}
BAC  is not  \text{ABC}
\text{CAB}  is not  ABC
ABC  is not  CBA
BA  is not  \text{AB}
on  is not  \text{no}
\text{ddo}  is not  \text{odd}
sey  is not  \text{yes}
\text{neve}  is not  \text{even}
B, A  is not  \text{A, B}
DCBA  is not  \text{ABCD}
\text{AABC}  is not  \text{ABCA}
\mathrm{PM}  is not  \text{MP}
CAB  is not  \text{ABC}
C, A, B  is not  \text{A, B, C}
AC  is not  CA
DEF  is not  FED
PQR  is not  \text{RQP}
acb  is not  \text{abc}
won  is not  now
tac  is not  \text{cat}
\text{neo}  is not  \text{one}
eslaF  is not  \text{False}
TF  is not  \text{FT}
TFT  is not  \text{FTT}
\text{AM}  is not  \text{MA}
\mathrm{CB}  is not  \mathrm{BC}
\text{A}  is not  B
BCA  is not  \text{BAC}
CAB  is not  \text{BAC}
CBA  is not  \text{BAC}
ACB  is not  \text{BAC}
BA  is not  \text{BAC}
BACK  is not  \text{BAC}
B,A,C,D  is not  \text{BAC}
{ABC}  is not  \text{BAC}
A, B, C  is not  \text{BAC}
\text{ABC}  is not  \text{BAC}
\mathrm{ABC}  is not  \text{BAC}
abc  is not  \text{BAC}
ABCD  is not  ACDB
ACBD  is not  ACDB
BDCA  is not  ACDB
QP  is not  \text{PQ}
HTH  is not  \text{HHT}
THH  is not  \text{HHT}
HT  is not  \text{HHT}
pots  is not  \text{stop}
post  is not  \text{stop}
spot  is not  \text{stop}
RGYB  is not  RYGB
BGYR  is not  RYGB
ba  is not  \text{ab}
\triangle ACB  is not  \triangle ABC
\triangle BAC  is not  \triangle ABC
\angle BAC  is not  \angle ABC
\overline{CD}  is not  \overline{AB}
XVI  is not  XIV
VIX  is not  XIV
(A), (B)  is not  \text{(A), (C)}
A  is not  \text{(A), (C)}
A and B  is not  \text{A and C}
A  is not  \text{A and C}
C  is not  \text{A and C}
ABC  is  \text{ABC}
\text{ABC}  is  ABC
A,B  is  \text{A, B}
B, A  is  A, B
Yes  is  \text{yes}
\textbf{Odd}  is  \text{odd}
\text{(B)}  is  B
xy  is  yx
A B C  is  \text{ABC}
\mathrm{BC}  is  \mathrm{BC}
\text{True}  is  True
true  is  \text{True}
C  is  \text{(C)}
\textbf{(C)}  is  C
\text{C}  is  \textbf{(C)}
ba  is  ab
A and B  is  \text{A and B}
BAC  is  \text{BAC}
\text{BAC}  is  \text{BAC}
bac  is  \text{BAC}
\mathrm{BAC}  is  \text{BAC}
B A C  is  \text{BAC}
\overline{AB}  is  \overline{AB}
(A), (C)  is  \text{(A), (C)}
\text{(A),(C)}  is  \text{(A), (C)}
C and A  is  A and C
A, C  is  A and C
""",
    "precision": r"""
0.0  is not  1/2^{50}
0  is not  1/2^{50}
0.0000009  is not  1/10^6
0.0  is not  \frac{1}{2^{50}}
\frac{1}{2^{51}}  is not  \frac{1}{2^{50}}
0.0  is not  \frac{\sqrt{2}}{10^{9}}
\frac{\sqrt{3}}{10^{20}}  is not  \frac{\sqrt{2}}{10^{20}}
0.000001  is not  \frac{\sqrt{2}}{10^{6}}
1.0000001  is not  1 + \frac{1}{10^8}
0.3333333  is not  \frac{\pi}{3\pi}
1.4142  is not  \sqrt{2}
0.0000001  is not  2^{-20}
0.0, 1  is not  \frac{1}{2^{50}}, 1
(0.0, 1)  is not  (\frac{1}{2^{50}}, 1)
[0.0000009, 2]  is not  [1/10^6, 2]
\{0, 1\}  is not  \{10^{-9}, 1\}
1.0000000001x  is not  x
x + 0.0000001  is not  x
(e^2)^3  is not  e^3
(-e)^3  is not  e^3
(e^2)^3  is not  e^6
(\sqrt2)^3  is not  \sqrt2
(-2)^3  is not  8
-2^2  is not  4
0  is not  10^{-9}
0.0  is not  1/10^9
0.00000  is not  \frac{1}{3^{20}}
0.000000  is not  \frac{1}{10^{12}}
1  is not  1+10^{-10}
1.0  is not  \frac{10^{10}+1}{10^{10}}
0.1428571  is not  1/7
0.142857  is not  \frac{1}{7}
0.6666667  is not  \frac23
2.718  is not  e
0  is not  e^{-30}
0.0  is not  \frac{\pi}{10^8}
0.0000003  is not  \frac{\pi}{10^7}
\frac{1}{10^{20}}  is not  \frac{1}{10^{21}}
99999999999999999999  is not  99999999999999999998
\sqrt{1000000000001}  is not  1000000
\sqrt{10^{30}+1}  is not  10^{15}
0.0, 2  is not  2, 1/2^{50}
0.0i  is not  10^{-9} i
0.00000011  is not  \frac{1}{9000000}
x = 0.0  is not  1/2^{50}
0.0\%  is not  10^{-9}\%
\begin{pmatrix}0\\1\end{pmatrix}  is not  \begin{pmatrix}10^{-9}\\1\end{pmatrix}
0.0x  is not  \frac{x}{2^{50}}
0.0000000x  is not  \frac{x}{10^{9}}
x + \frac{1}{10^{9}}  is not  x
1.0000001x  is not  x
0.3333333x  is not  \frac{x}{3}
0.00000  is not  1/2^{50}
1e-16  is not  1/2^{50}
0.000000000000000  is not  1/2^{50}
2^{-51}  is not  1/2^{50}
1/2^{49}  is not  1/2^{50}
0.0000000000000008  is not  1/2^{50}
8.88e-16  is not  1/2^{50}
0.0000011  is not  1/10^6
0  is not  1/10^6
0.000001001  is not  1/10^6
1e-5  is not  1/10^6
0.00000  is not  1/10^6
1/10^7  is not  1/10^6
0.0000010000001  is not  1/10^6
0.333333  is not  \frac{1}{3}
0.3333333333  is not  \frac{1}{3}
0.33333333333333333333  is not  \frac{1}{3}
0.3  is not  \frac{1}{3}
0.33  is not  \frac{1}{3}
0  is not  \frac{\sqrt{2}}{10^8}
0.0  is not  \frac{\sqrt{2}}{10^8}
0.00000001  is not  \frac{\sqrt{2}}{10^8}
0.0000000141  is not  \frac{\sqrt{2}}{10^8}
\frac{\sqrt{3}}{10^8}  is not  \frac{\sqrt{2}}{10^8}
(0,1)  is not  \left(\frac{1}{10^9}, 1\right)
(0.0,1)  is not  \left(\frac{1}{10^9}, 1\right)
(0.0000000009,1)  is not  \left(\frac{1}{10^9}, 1\right)
\{0, 0\}  is not  \{10^{-8}, 10^{-9}\}
0,0  is not  \{10^{-8}, 10^{-9}\}
0  is not  10^{-9}x
0x  is not  10^{-9}x
0.0  is not  10^{-9}x
10^{-8}x  is not  10^{-9}x
x=0  is not  x=10^{-10}
0  is not  x=10^{-10}
x=0.0  is not  x=10^{-10}
1234567.123457  is not  1234567.1234567
1234567.12345671  is not  1234567.1234567
3.14  is not  \pi
3.14159  is not  \pi
3.1416  is not  \pi
22/7  is not  \pi
\frac{355}{113}  is not  \pi
3.141592  is not  \pi
3.141594  is not  \pi
3  is not  \pi
0  is not  e^{-20}
0.0  is not  e^{-20}
2.06e-9  is not  e^{-20}
0.000000  is not  e^{-20}
14142136  is not  10000000\sqrt{2}
14142135.6  is not  10000000\sqrt{2}
14142135  is not  10000000\sqrt{2}
3.284  is not  \frac{1}{7}+\pi
3.28445  is not  \frac{1}{7}+\pi
0.10000000001  is not  0.1
0.0999999999  is not  0.1
0.1000001  is not  0.1
1  is not  \frac{\pi}{10^{7}} + 1
1.0  is not  \frac{\pi}{10^{7}} + 1
1.000000  is not  \frac{\pi}{10^{7}} + 1
0  is not  0.00001\%
0.0%  is not  0.00001\%
0  is not  10^{-7} i
0i  is not  10^{-7} i
i  is not  10^{-7} i
[0,0]  is not  [0, 10^{-7}]
[0, 0.0]  is not  [0, 10^{-7}]
0  is not  [0, 10^{-7}]
0.000001  is  1/10^6
\frac{3}{10^{6}}  is  0.000003
2^{-50}  is  \frac{1}{2^{50}}
1/1125899906842624  is  1/2^{50}
10^{-6}  is  1/10^6
1.414214  is  \sqrt{2}
14142.135624  is  10000\sqrt{2}
e^3  is  e^{3}
(-2)^3  is  -8
2.7182818  is  e
\frac{1}{2^{50}}  is  2^{-50}
1e-6  is  1/10^6
2^{-50}  is  1/2^{50}
\frac{1}{2^{50}}  is  1/2^{50}
\left(\frac{1}{2}\right)^{50}  is  1/2^{50}
0.5^{50}  is  1/2^{50}
(1/2)^{50}  is  1/2^{50}
\frac{1}{1125899906842624}  is  1/2^{50}
\frac{1}{1000000}  is  1/10^6
1\times10^{-6}  is  1/10^6
3.141593  is  \pi
3.14159265  is  \pi
3.141592654  is  \pi
\pi  is  \pi
""",
    "bases": r"""
1010_3  is not  1010_2
1010_{3}  is not  1010_{2}
1011_2  is not  1010_2
110_{4}  is not  110_{5}
1A_{12}  is not  1A_{16}
1010_{\text{three}}  is not  1010_{\text{two}}
10  is not  1010_2
10_{10}  is not  1010_2
22_4  is not  1010_2
1010_2  is not  10
1010_2, 1  is not  1010_3, 1
A_2  is not  A_3
101_2  is not  101_3
11_{7}  is not  11_{8}
1010_{two}  is not  1010_{three}
1012_3  is not  1011_3
AB_{16}  is not  AB_{12}
42  is not  2A_{16}
5_{10}  is not  5_{8}
1010.1_2  is not  1010.1_3
(1010)_3  is not  1010_2
1010_2 + 1_2  is not  1011_2
10_{2}  is not  2
-101_3  is not  -101_2
1010_{3}  is not  1010_2
101_2  is not  1010_2
1010_4  is not  1010_2
12_8  is not  1010_2
A_{16}  is not  1010_2
1010_{10}  is not  1010_2
1010_{\text{three}}  is not  1010_2
2_{1010}  is not  1010_2
1010_2+0_2  is not  1010_2
1010_2 or 10  is not  1010_2
2A_{12}  is not  2A_{16}
2B_{16}  is not  2A_{16}
A2_{16}  is not  2A_{16}
10_2  is not  10
10_{2}  is not  10
10_8  is not  10
12_8  is not  10
A_{16}  is not  10
10_{16}  is not  10
243_6  is not  243_5
342_5  is not  243_5
73  is not  243_5
73_{10}  is not  243_5
110_3, 11_2  is not  110_2, 11_2
6, 3  is not  110_2, 11_2
1010_2  is  1010_{2}
1010_{\text{two}}  is  1010_2
1010_{two}  is  1010_2
1A_{16}  is  \text{1A}_{16}
25_{10}  is  25
25  is  25_{10}
1010  is  1010_2
x = 1010_2  is  1010_2
1010_\text{2}  is  1010_2
1010 _ 2  is  1010_2
AB_{16}  is  AB_{16}
2A_{16}  is  2A_{16}
(1010)_2  is  1010_2
1010_{(2)}  is  1010_2
12,\! 345_6  is  12345_6
-101_2  is  -101_2
1010_2  is  1010_2
1010_{2}  is  1010_2
$1010_2$  is  1010_2
x=1010_2  is  1010_2
1010_{\mathrm{two}}  is  1010_2
1010_{ 2 }  is  1010_2
1010_2.  is  1010_2
2A  is  2A_{16}
\text{2A}_{16}  is  2A_{16}
2A_{16}.  is  2A_{16}
10_{10}  is  10
10  is  10
243_5  is  243_5
243_{5}  is  243_5
243  is  243_5
11_2, 110_2  is  110_2, 11_2
""",
    "multisets": r"""
1,2  is not  1,2,2
1,2,2  is not  1,2
1,1,2  is not  1,2,2
\{1, 2\}  is not  1, 2, 2
1, 2, 3  is not  1, 2, 2
x = 1, x = 2  is not  1, 2, 2
1, 2, 2, 2  is not  1, 2, 2
\sqrt{2}, 1  is not  \sqrt{2}, \sqrt{2}, 1
3, 3  is not  3
3  is not  3, 3
(1,2), (1,2)  is not  (1,2)
(1,2), (3,4)  is not  (1,2), (3,4), (3,4)
1, \frac{2}{2}  is not  1, 2
1 \text{ and } 2  is not  1, 2, 2
0.5, \sqrt{4}/3  is not  \frac{2}{3}, \frac12
(4,3), (1,2)  is not  (1,2), (3,4)
y = 1, x = 2  is not  x = 1, y = 2
\pm 2  is not  2
1  is not  1,1
2,2  is not  2
1,1  is not  1
1,2,3  is not  1,2,3,3
\{1,1,2\}  is not  \{1,2\}
1;2  is not  1,2,2
1 and 2  is not  1,1,2
i, -i  is not  i, i, -i
\sqrt2,\sqrt2  is not  \sqrt2,-\sqrt2
x,y  is not  x,y,y
(2,1),(3,4)  is not  (3,4),(1,2)
1,000,2  is not  1000, 2
2,1  is not  1,2,2
1,2,2,2  is not  1,2,2
2,2  is not  1,2,2
1,2,3  is not  1,2,2
\{1,2\}  is not  1,2,2
x=1,2  is not  1,2,2
1 and 2  is not  1,2,2
1, 2 and 1  is not  1,2,2
(1,2)  is not  1,2,2
1 \text{ or } 2  is not  1,2,2
1,2,2.5  is not  1,2,2
\{2,1\}  is not  1,2,2
x \in \{1,2\}  is not  1,2,2
\frac12, 1  is not  \frac12, \frac12, 1
0.5,1  is not  \frac12, \frac12, 1
(0,0),(1,1)  is not  (0,0),(1,1),(1,1)
-1,1  is not  -1, 1, 1
\pm 1  is not  -1, 1, 1
x,y  is not  x, x, y
i,-i  is not  i, i, -i
\pm i  is not  i, i, -i
a,b  is not  a,b,c
a,b,c,d  is not  a,b,c
a,b,d  is not  a,b,c
5  is not  5, 5
A, B  is not  A, B, B
A,A,B  is not  A, B, B
2, 1, 2  is  1, 2, 2
\{2, 2, 1\}  is  1, 2, 2
2 and 1  is  1, 2
\frac{2}{3}, 0.5  is  \frac{1}{2}, \frac{2}{3}
(3,4), (1,2)  is  (1,2), (3,4)
x = 2, x = 1  is  1, 2
y = 2, x = 1  is  x = 1, y = 2
1,234 and 5  is  5, 1234
x = \pm 2  is  -2, 2
1 \pm \sqrt{2}  is  1 + \sqrt{2}, 1 - \sqrt{2}
a, b  is  b, a
\pi, 1  is  1, \pi
1, 2, and 3  is  3,2,1
x=1,2  is  1,2
\frac12,\frac14  is  0.25,0.5
(1,2),(3,4)  is  (3,4),(1,2)
\{(1,2),(3,4)\}  is  (1,2), (3,4)
1,2,2  is  2,2,1
2,1,2  is  1,2,2
\{1,2,2\}  is  1,2,2
x=1,2,2  is  1,2,2
2, 2, and 1  is  1,2,2
1; 2; 2  is  1,2,2
1, 2, 4/2  is  1,2,2
1,2.0,2  is  1,2,2
1, 0.5, 1/2  is  \frac12, \frac12, 1
y,x,x  is  x, x, y
""",
    "complex numbers": r"""
3 - 2\,\mathrm i  is  3-2i
-5 - 12 \mathrm{~i}  is  -5-12i
2 - 3\mathit{i}  is  2-3i
a+b\mathrm{i}  is  a+bi
\pi\mathrm{i}  is  i\pi
5 \text{ i}  is not  5
3 - 2\,\mathrm i  is not  3+2i
13+8i  is not  13-8i
13  is not  13-8i
8  is not  8i
8i  is not  8
13-8  is not  13-8i
8-13i  is not  13-8i
i  is not  -i
13-8j  is not  13-8i
3\sqrt{2i}  is not  3\sqrt{2}i
1+2i  is not  2+i
1+2i  is not  1-2i
-13+8i  is not  13-8i
8i  is not  13-8i
5i  is not  13-8i
13i-8  is not  13-8i
13-8x  is not  13-8i
(13,-8)  is not  13-8i
13-8i, 13+8i  is not  13-8i
13 \pm 8i  is not  13-8i
13-8i^2  is not  13-8i
3\sqrt2  is not  3i\sqrt2
3i  is not  3i\sqrt2
3\sqrt{2i}  is not  3i\sqrt2
-3i\sqrt2  is not  3i\sqrt2
\sqrt{-18}  is not  3i\sqrt2
i3\sqrt3  is not  3i\sqrt2
2i  is not  2i, -2i
-2i  is not  2i, -2i
2,-2  is not  2i, -2i
13-8i  is  13-8 i
13 - 8i  is  13-8i
8\mathrm{i}  is  8i
8i  is  8\mathrm{i}
3i\sqrt2  is  3\sqrt{2}i
3\sqrt{2}i  is  3i\sqrt{2}
3\sqrt2\,i  is  3i\sqrt{2}
-i  is  -1 i
-8i + 13  is  13-8i
\frac{1+3i}{2}  is  \frac{1}{2} + \frac{3}{2}i
\frac12 + \frac{3i}{2}  is  \frac{1}{2}+\frac{3}{2} i
2+i, 2-i  is  2 - i, 2 + i
2 \pm i  is  2+i, 2-i
z = 3 + 4i  is  3+4i
-\frac{1}{2} + \frac{\sqrt{3}}{2} i  is  \frac{-1+i\sqrt{3}}{2}
\imath  is  i
2i  is  2 i
2*i  is  2i
2\cdot i  is  2i
4 + 3\mathrm{i}  is  3i+4
\frac{3i}{2}  is  \frac{3}{2}i
\frac{3}{2}i  is  1.5i
i\sqrt{3}  is  \sqrt{3}i
\sqrt{3}\,i  is  i\sqrt{3}
\sqrt{3} \cdot i  is  i\sqrt{3}
1 - i  is  1-i
-i+1  is  1-i
\frac{1}{2}-\frac{\sqrt{3}}{2}i  is  \frac{1-\sqrt3 i}{2}
\frac{1-i\sqrt3}{2}  is  \frac12 - \frac{\sqrt3}2 i
6-5\,i  is  6-5i
6-5i  is  6-5 i.
-7-24 i  is  -7-24i
3/2 i  is  \frac{3}{2}i
2-3\text{i}  is  2-3i
a+bi  is  a+b i
x+3i  is  3i+x
2e^{i\pi/3}  is  2e^{i\pi/3}
2e^{\frac{\pi i}{3}}  is  2e^{i\pi/3}
13-8 i  is  13-8i
13 - 8\,i  is  13-8i
13-8\cdot i  is  13-8i
-8i+13  is  13-8i
13-8\mathrm{i}  is  13-8i
13-8{i}  is  13-8i
(13-8i)  is  13-8i
z=13-8i  is  13-8i
13 - 8\text{i}  is  13-8i
13-8*i  is  13-8i
13.0-8.0i  is  13-8i
13-8\imath  is  13-8i
8 i  is  8i
8\cdot i  is  8i
8i.  is  8i
8{i}  is  8i
3\sqrt2 i  is  3i\sqrt2
3\sqrt{2}i  is  3i\sqrt2
\sqrt{18}i  is  3i\sqrt2
i\sqrt{18}  is  3i\sqrt2
3i\sqrt{2}  is  3i\sqrt2
3 \sqrt{2} \, i  is  3i\sqrt2
-\frac12 + \frac{\sqrt3}{2}i, -\frac12-\frac{\sqrt3}{2}i  is  \frac{-1\pm i\sqrt3}{2}
-\frac12\pm\frac{\sqrt3}{2}i  is  \frac{-1\pm i\sqrt3}{2}
\frac{-1 \pm \sqrt{3}i}{2}  is  \frac{-1\pm i\sqrt3}{2}
i  is  i
\mathrm{i}  is  i
1i  is  i
bi+a  is  a+bi
a + b i  is  a+bi
a+b\cdot i  is  a+bi
2ix+x^2  is  x^2+2ix
x^2 + 2 i x  is  x^2+2ix
\pm 2i  is  2i, -2i
-2i, 2i  is  2i, -2i
\{2i,-2i\}  is  2i, -2i
z=\pm2i  is  2i, -2i
""",
    "golds with units": r"""
5  is  5 \frac{\text{m}}{\text{s}}
5 \frac{\mathrm{m}}{\mathrm{s}}  is  5 \text{ m/s}
5  is  5 \mathrm{~km\,h^{-1}}
5\ \mathrm{m\cdot s^{-1}}  is  5
5 cm²  is  5 \text{ cm}^2
5 m³  is  5
5 m/s²  is  5 \mathrm{~m} / \mathrm{s}^2
5 €  is  5
₹5  is  5
\frac{3}{4} cups  is  \frac34
\sqrt{2} cm  is  \sqrt2
4\pi cm^3  is  4\pi
4\pi cubic inches  is  4\pi \text{ in}^3
\frac{\pi}{2} radians  is  \frac{\pi}{2}
5 sq. units  is  5 \text{ square units}
5 centimetres  is  5 \text{ cm}
5 \text{ kilometers}  is  5 km
90 minutes  is  90 \text{ min}
5 seconds  is  5 \mathrm{~s}
5 miles per hour  is  5 mph
12 feet  is  12 \text{ ft}
45 deg  is  45^\circ
10:08 PM  is  10\!:\!08 \text{ p.m.}
10:08 p.m.  is  \text{10:08 PM}
10:08 a.m.  is not  10\!:\!08 \text{ p.m.}
10:09 PM  is not  10\!:\!08 \text{ p.m.}
6:00 PM  is not  \text{7:00 PM}
5 \mathrm{~s}  is not  5 \mathrm{~m}
5 \text{ ms}  is not  5 \text{ m}
5 \frac{\mathrm{m}}{\mathrm{s}}  is not  5 \text{ km/h}
5 cm³  is not  5 \text{ cm}^2
5 centimeters  is not  5 \text{ km}
5 square feet  is not  5 \text{ ft}
4\pi r  is not  4\pi
5 \mathrm{~km}  is not  5 \mathrm{~cm}
6  is not  5 \mathrm{~cm}
5 m/s  is not  5 \mathrm{~km/h}
5 cm  is not  5 \mathrm{~cm}^2
5 h/km  is not  5 km/h
12 cm  is not  12 \mathrm{~m}
13  is not  12 \mathrm{~cm}
12 g  is not  12 \mathrm{~kg}
12^2  is not  12 \mathrm{~cm}^2
5 mm  is not  5 \mathrm{~cm}
5\text{ km}  is not  5 \mathrm{~cm}
50  is not  5 \mathrm{~cm}
5 cm^2  is not  5 \mathrm{~cm}
0.05  is not  5 \mathrm{~cm}
5 inches  is not  5 \mathrm{~cm}
5  is  5 \mathrm{~cm}
5 cm  is  5 \mathrm{~cm}
5 \mathrm{~cm}  is  5
5\,\text{cm}  is  5 \mathrm{~cm}
5  is  5 \mathrm{~cm}^{2}
5  is  5 \mathrm{~m} / \mathrm{s}
5  is  5 \mathrm{~km/h}
5  is  5 \mathrm{~g} / \mathrm{cm}^{3}
5 km/h  is  5
5  is  5 km/h
5 m/s  is  5
5 m/s^2  is  5
5 cm^2  is  5
5 \text{ km/h}  is  5 km/h
5 \text{ square units}  is  5
5\text{ units}^2  is  5
5  is  5\ \text{cm}
5\sqrt{2}  is  5\sqrt{2} \mathrm{~cm}
\frac{5}{2}  is  \frac{5}{2} \mathrm{~kg}
5  is  5^{\circ} \mathrm{C}
5  is  5^\circ\text{C}
5  is  \$5
5 \textnormal{ cm}  is  5
12  is  12 \mathrm{~cm}
12  is  12 \text{ cm}^3
12  is  12\text{ cm}^{3}
12  is  12\ \mathrm{cm}
12  is  12 \mathrm{~kg} \cdot \mathrm{m}^{2}
12  is  12 \mathrm{~km} / \mathrm{h}
12  is  12\%
12  is  12^{\circ}
12  is  12 \text{ dollars}
12  is  \$12
12  is  12 dollars
12  is  12 km
12  is  12 \text{ square inches}
12  is  12 miles per hour
12  is  12 mph
12  is  12 \mathrm{\ cm}
12  is  12\mathrm{cm}
12  is  12 \text{~cm}
12  is  12 \text {cm}
12 cm  is  12 \mathrm{~cm}
12\mathrm{~cm}  is  12 cm
12 \pi  is  12 \pi \mathrm{~cm}^{2}
12\pi  is  12 \pi \text{ cm}^2
\frac{3}{4}  is  \frac{3}{4} \text{ hours}
3.5  is  3.5 \mathrm{~L}
12  is  12 \mathrm{~min}
5 km/h  is  5 \mathrm{~km/h}
5 km / h  is  5 km/h
5 miles/hour  is  5
5 kg/m^3  is  5
5 m^2  is  5
5 dollars per hour  is  5
5 ft/s  is  5
x = 5 cm  is  5
5 \mathrm{~s}  is  5
5 \mathrm{~A}  is  5
5.0  is  5 \mathrm{~cm}
5cm  is  5 \mathrm{~cm}
5\,\mathrm{cm}  is  5 \mathrm{~cm}
5 \text{cm}  is  5 \mathrm{~cm}
5~\text{cm}  is  5 \mathrm{~cm}
x=5  is  5 \mathrm{~cm}
5 \ \mathrm{cm}  is  5 \mathrm{~cm}
5\;\mathrm{cm}  is  5 \mathrm{~cm}
10/2  is  5 \mathrm{~cm}
$5$  is  5 \mathrm{~cm}
5\mathrm{~cm}.  is  5 \mathrm{~cm}
36  is  36 \text{ square units}
36\text{ square units}  is  36 \text{ square units}
4500  is  4.5 \times 10^{3} \mathrm{~J}
4.5e3  is  4.5 \times 10^{3} \mathrm{~J}
4.5 \times 10^{3}  is  4.5 \times 10^{3} \mathrm{~J}
4500 \text{ J}  is  4.5 \times 10^{3} \mathrm{~J}
45  is  45 \mathrm{~km} / \mathrm{h}
45 km/h  is  45 \mathrm{~km} / \mathrm{h}
45 \text{ km/h}  is  45 \mathrm{~km} / \mathrm{h}
25  is  25 \%
25%  is  25 \%
25\%  is  25 \%
0.25  is  25 \%
5.5  is  \$ 5.50
5.50  is  \$ 5.50
\$5.50  is  \$ 5.50
$5.50  is  \$ 5.50
30  is  30^{\circ} \mathrm{C}
30^\circ  is  30^{\circ} \mathrm{C}
30^\circ \text{C}  is  30^{\circ} \mathrm{C}
30°C  is  30^{\circ} \mathrm{C}
2  is  2 \mathrm{~m} / \mathrm{s}^{2}
2 m/s^2  is  2 \mathrm{~m} / \mathrm{s}^{2}
2\text{ m/s}^2  is  2 \mathrm{~m} / \mathrm{s}^{2}
2 \mathrm{~m/s}^{2}  is  2 \mathrm{~m} / \mathrm{s}^{2}
18  is  18 years old
18 years old  is  18 years old
12  is  12 ft
12 ft  is  12 ft
3  is  3 \text{ hours}
3 hours  is  3 \text{ hours}
3 hour  is  3 \text{ hours}
60  is  60 \text{ mph}
60 mph  is  60 \text{ mph}
120  is  120 \mathrm{~cm}^{3}
120 cm^3  is  120 \mathrm{~cm}^{3}
120 \text{ cm}^3  is  120 \mathrm{~cm}^{3}
120\,\text{cm}^3  is  120 \mathrm{~cm}^{3}
5  is  5 \text{ feet}
5  is  5 \text{ meters per second}
5  is  €5
3/4  is  \frac{3}{4} \text{ cup}
0.75  is  \frac{3}{4} \text{ cup}
\sqrt2  is  \sqrt{2}\text{ m}
8  is  8\mathrm{cm}
8  is  8
5  is  \text{5 cm}
5 cm  is  \text{5 cm}
1200  is  1{,}200 \text{ dollars}
1,200  is  1{,}200 \text{ dollars}
10  is  10 \text{ mL}
7  is  7 \text{ people}
7 people  is  7 \text{ people}
""",
    "text commands": r"""
\boldsymbol{42}  is  42
\bm{x+1}  is  x+1
\boldsymbol{43}  is not  42
\textnormal{odd}  is not  \text{even}
\textnormal{43}  is not  42
\textnormal{D}  is not  C
\textnormal{B}  is  B
B  is  \textnormal{B}
\textnormal{42}  is  42
\textnormal{even}  is  \text{even}
\textrm{even}  is  \text{even}
\textit{even}  is  even
\textsf{Monday}  is  Monday
\mathbf{42}  is  42
\operatorname{even}  is  \text{even}
42 \textnormal{ apples}  is  42
\textnormal{(A)}  is  A
\textnormal{C}  is  C
\textnormal{5}  is  5
5\textnormal{ km}  is  5
5  is  5 \textnormal{ km}
\textnormal{Friday}  is  Friday
\textnormal{(D)}  is  D
\textrm{C}  is  C
\textup{C}  is  C
\mathsf{C}  is  C
\textnormal{1, 2}  is  1,2
\textnormal{x = 5}  is  5
\textnormal{50\%}  is  50
\textnormal{ yes }  is  yes
x<1 \textnormal{ or } x>2  is  x<1 \text{ or } x>2
""",
    "named values": r"""
x_1 = 1, x_2 = 2  is  1, 2
x_1 = 2 \text{ and } x_2 = 1  is  1, 2
x_{1} = 1,\ x_{2} = 2  is  1, 2
x_{1,2} = 1 \pm \sqrt{2}  is  1 \pm \sqrt{2}
x_1 = 1, x_2 = 3  is not  1, 2
x_1 = 1, y_2 = 2  is not  1, 2
x_1 = 1  is not  1, 2
AB = 5  is not  x = 5
AB = 6  is not  5
f(2) = 5  is not  f(3) = 5
f(2) = 2  is not  5
AB + CD = 5  is not  5
AB = CD = 5  is not  4
f(2)=8  is not  7
AB=BC=7  is not  7
\sin A = 7  is not  7
a+b=7  is not  7
7x = 7  is not  7
f(x) = 7 = 8  is not  7
n! = 120  is not  120
x=7  is not  n=7
AB=7  is not  CD=7
|x|=7  is not  7
x_1=7  is not  x_2=7
AB^2 = 49  is not  49
AB=6  is not  5
f(2)=6  is not  5
f(5)=2  is not  5
AB+BC=5  is not  5
f(2)+1=5  is not  5
f(2)=5=6  is not  5
2f(2)=5  is not  5
AB^2=5  is not  5
f(2)^2=5  is not  5
AB/CD=5  is not  5
AB=CD  is not  5
f(x)=5x  is not  5
AB=5, CD=6  is not  5
AB<5  is not  5
\sin x=5  is not  5
xy=5  is not  5
x+y=5  is not  5
AB = 5 or 6  is not  5
f(2)=5 or f(2)=6  is not  5
f(2)=50  is not  5
not AB=5  is not  5
CD=5  is not  AB=5
BC=5  is not  AB=5
6  is not  AB=5
AB  is not  AB=5
f(3)=5  is not  f(2)=5
g(2)=5  is not  f(2)=5
2  is not  f(2)=5
6  is not  f(2)=5
f(2)  is not  f(2)=5
x  is not  f(x)=x+1
f(x)=x  is not  f(x)=x+1
g(x)=x+1  is not  f(x)=x+1
f(x)  is not  f(x)=x+1
AB=5  is  5
f(2)=5  is  5
f(x) = 2x+1  is  2x+1
2x+1  is  f(x) = 2x + 1
\theta = 5  is  5
x_1 = 5  is  5
S_{10} = 55  is  55
\angle ABC = 30^\circ  is  30
P(A) = \frac{1}{2}  is  0.5
\overline{AB} = 5  is  5
|AB| = 5  is  5
f^{-1}(3) = 5  is  5
\text{Area} = 5  is  5
5  is  AB = 5
5  is  f(2) = 5
BC = 7  is  7
n=7  is  7
N = 7  is  7
a_1 = 7  is  7
a_{10}=7  is  7
\alpha=7  is  7
g(3) = 7  is  7
f(0)=7  is  7
f(-2)=7  is  7
f(1/2)=7  is  7
f\left(2\right)=7  is  7
f(\frac{1}{2})=7  is  7
h(x)=x^2  is  x^2
P(x) = x^2+1  is  x^2+1
y=x^2  is  x^2
7=n  is  7
\triangle ABC = 7  is  7
m\angle A = 40^\circ  is  40
\text{Total} = 7  is  7
Area = 7  is  7
area = 7  is  7
ABC = 7  is  7
[ABC] = 7  is  7
x' = 7  is  7
E(X) = 7  is  7
P(A \cap B) = \frac{1}{4}  is  1/4
f(f(2)) = 7  is  7
S = 7  is  7
\lambda=7  is  7
k = 7.  is  7
P(\text{red}) = \frac{1}{4}  is  1/4
\mathrm{Area} = 7  is  7
AB = 5  is  5
f(2) = 5.  is  5
f(2)=5\text{ cm}  is  5
XYZ=5  is  5
x_{1}=5  is  5
x_{12}=5  is  5
a_{n}=5  is  5
\angle A = 5^\circ  is  5
m\angle ABC = 5^{\circ}  is  5
\theta=5  is  5
\overline{AB}=5  is  5
P(3)=5  is  5
g(-1)=5  is  5
f(0.5)=5  is  5
f^{-1}(5)=5  is  5
d=5  is  5
A=5  is  5
\text{area}=5  is  5
S_5=5  is  5
T_{10} = 5  is  5
h(0)=5  is  5
AB = 5 \text{ cm}  is  5
5 = AB  is  5
5=f(2)  is  5
\beta = 5  is  5
N=5  is  5
5  is  AB=5
AB=5  is  AB=5
AB = 5  is  AB=5
5=AB  is  AB=5
5  is  f(2)=5
f(2) = 5  is  f(2)=5
f( 2 )=5  is  f(2)=5
x+1  is  f(x)=x+1
f(x) = 1+x  is  f(x)=x+1
1+x  is  f(x)=x+1
""",
    "repeating decimals": r"""
0.\dot{1}\dot{8}  is  \frac{2}{11}
0.\dot{1}4285\dot{7}  is  \frac17
0.\dot1\dot8  is  0.\overline{18}
0.\dot{1}\dot{8}  is not  0.18
0.\dot{1}\dot{8}  is not  \frac{1}{9}
0.3  is not  0.\overline{3}
0.333333  is not  0.\overline{3}
0.\overline{3}  is not  0.3
0.\overline{34}  is not  \frac{1}{3}
0.3\overline{}  is not  \frac{1}{3}
0.\overline{3}  is not  0.\overline{4}
0.\overline{3}  is not  \frac{1}{30}
\overline{3}  is not  1/3
0.333...  is not  1/3
0.\overline{\overline{3}}  is not  1/3
0.\overline{3}  is  \frac{1}{3}
\frac{1}{3}  is  0.\overline{3}
0.1\overline{6}  is  \frac16
0.\overline{142857}  is  1/7
0.\bar{3}  is  1/3
0.\dot{3}  is  1/3
-0.\overline{3}  is  -1/3
2.\overline{45}  is  \frac{27}{11}
0.\overline{9}  is  1
.\overline{3}  is  1/3
0.\overline 3  is  1/3
33.\overline{3}\%  is  1/3
0.\overline{12}  is  \frac{4}{33}
0.\overline{09}  is  1/11
1.\overline{3}  is  4/3
3.1\overline{6}  is  \frac{19}{6}
$0.\overline{3}$  is  1/3
0.\overline{3}  is  0.\overline{33}
1/3  is  0.\bar 3
0.0\overline{3}  is  \frac{1}{30}
x=0.\overline{3}  is  1/3
0.\overline{3}\%  is  \frac{1}{300}
-1.\overline{6}  is  -\frac53
0.\overline{0}  is  0
0.\overline{3}, 1  is  1, 1/3
[0.\overline{3}, 1]  is  [1/3, 1]
""",
    "alternatives": r"""
x<1 \text{ or } x>3  is not  x<1 \text{ or } x>2
x \le 1 \text{ or } x>2  is not  x<1 \text{ or } x>2
x<1  is not  x<1 \text{ or } x>2
x<1 \text{ and } x>2  is not  x<1 \text{ or } x>2
x<1 \text{ or } x>2  is not  x < 1
y<1 \text{ or } y>2  is not  x<1 \text{ or } x>2
x = 1 \text{ or } x = 2  is not  1
x<1 \text{ or } x>2  is not  (-\infty,1] \cup [2,\infty)
x<2 \text{ or } x>1  is not  (-\infty,1) \cup (2,\infty)
x<1 \text{ or } y>2  is not  x<1 \text{ or } x>2
\{x < 1\} \cup \{x > 2\}  is not  x<1 \text{ or } x>2
x<1 \text{ and } x>2  is not  (-\infty,1) \cup (2,\infty)
1<x<2  is not  (-\infty,1) \cup (2,\infty)
x\le1 \text{ or } x\ge2  is not  (-\infty,1) \cup (2,\infty)
x<1  is not  (-\infty,1) \cup (2,\infty)
x>2  is not  (-\infty,1) \cup (2,\infty)
x<1 or x<2  is not  (-\infty,1) \cup (2,\infty)
x \ne 1,2  is not  (-\infty,1) \cup (2,\infty)
(1,2)  is not  (-\infty,1) \cup (2,\infty)
x^2-3x+2>0  is not  (-\infty,1) \cup (2,\infty)
(x-1)(x-2)>0  is not  (-\infty,1) \cup (2,\infty)
1  is not  x=1 \text{ or } x=2
x=1  is not  x=1 \text{ or } x=2
1,3  is not  x=1 \text{ or } x=2
x=1 or y=2  is not  x=1 \text{ or } x=2
x<1 \text{ or } x>2  is  (-\infty,1) \cup (2,\infty)
(-\infty,1) \cup (2,\infty)  is  x<1 \text{ or } x>2
x<1 \text{ or } x>2  is  x > 2 \text{ or } x < 1
x < 1 or x > 2  is  x<1 \text{ or } x>2
x<1 \lor x>2  is  x<1 \text{ or } x>2
x \le 1 \text{ or } x \geq 2  is  (-\infty,1] \cup [2,\infty)
1 > x \text{ or } 2 < x  is  x<1 \text{ or } x>2
x > 1 \text{ and } x < 2  is  (1, 2)
x \in (-\infty,1) \cup (2,\infty)  is  x<1 \text{ or } x>2
x = 1 \text{ or } x = 2  is  1, 2
1 \text{ or } 2  is  2, 1
x \neq 3  is  (-\infty, 3) \cup (3, \infty)
x<1 or x>2  is  x<1 or x>2
x < -1 \text{ or } x > 3  is  (-\infty,-1)\cup(3,\infty)
x\leq -1\text{ or }x\geq 3  is  (-\infty,-1]\cup[3,\infty)
x \le -1 \quad\text{or}\quad x \ge 3  is  (-\infty,-1]\cup[3,\infty)
x \leqslant 1 \text{ or } x > 2  is  (-\infty, 1] \cup (2, \infty)
x > 2, x < 1  is  x<1 \text{ or } x>2
1 < x < 2 \text{ or } x > 5  is  (1,2) \cup (5,\infty)
x = 3 \text{ or } x = -3  is  3,-3
x=3\text{ or }-3  is  -3, 3
t<1 \text{ or } t>2  is  (-\infty,1) \cup (2,\infty)
x \in (1,2)  is  1<x<2
2>x>1  is  1<x<2
2 \ge x > 1  is  (1,2]
x < \sqrt{2} \text{ or } x > \pi  is  (-\infty,\sqrt2)\cup(\pi,\infty)
-\sqrt{3} < x < \sqrt{3}  is  (-\sqrt3,\sqrt3)
a<1 \text{ or } a>2  is  a<1 or a>2
x<1 \cup x>2  is  x<1 \text{ or } x>2
x<1\text{ or }x>2  is  (-\infty,1) \cup (2,\infty)
x>2\text{ or }x<1  is  (-\infty,1) \cup (2,\infty)
x<1 or x>2  is  (-\infty,1) \cup (2,\infty)
x<1\lor x>2  is  (-\infty,1) \cup (2,\infty)
x < 1 \vee x > 2  is  (-\infty,1) \cup (2,\infty)
x<1\ \text{or}\ x>2  is  (-\infty,1) \cup (2,\infty)
x<1\;\text{or}\;x>2  is  (-\infty,1) \cup (2,\infty)
x < 1 \mbox{ or } x > 2  is  (-\infty,1) \cup (2,\infty)
x < 1 \mathrm{\ or\ } x > 2  is  (-\infty,1) \cup (2,\infty)
1>x \text{ or } x>2  is  (-\infty,1) \cup (2,\infty)
y<1 or y>2  is  (-\infty,1) \cup (2,\infty)
x \lt 1 \text{ or } x \gt 2  is  (-\infty,1) \cup (2,\infty)
x \in (-\infty,1) \cup (2,\infty)  is  (-\infty,1) \cup (2,\infty)
x<1, x>2  is  (-\infty,1) \cup (2,\infty)
\text{x<1 or x>2}  is  (-\infty,1) \cup (2,\infty)
x>2 \text{ or } x<1  is  x<1 \text{ or } x>2
x<1 or 2<x  is  x<1 \text{ or } x>2
(-\infty,1)\cup(2,\infty)  is  x<1 \text{ or } x>2
(2,\infty)\cup(-\infty,1)  is  x<1 \text{ or } x>2
1,2  is  x=1 \text{ or } x=2
x=1,2  is  x=1 \text{ or } x=2
x=2 or x=1  is  x=1 \text{ or } x=2
\{1,2\}  is  x=1 \text{ or } x=2
1 or 2  is  x=1 \text{ or } x=2
x \in \{1,2\}  is  x=1 \text{ or } x=2
x=0 \text{ or } x\le -3  is  x \le -3 \text{ or } x = 0
x \leq -3 \text{ or } x=0  is  x \le -3 \text{ or } x = 0
""",
    "thousands and full stops": r"""
32{,} 349  is not  32349
32,\! 349  is not  32
3,\! 2349  is not  32349
$5.1$  is not  5
32, 349  is not  32349
1,\;234  is not  1234
12,\!34  is not  1234
32 349  is not  32349
32,\! 34  is not  32349
32.349  is not  32349
3,2349  is not  32349
32;349  is not  32349
32,\! 349  is  32349
32349  is  32,\! 349
32,\!349  is  32,349
32\, 349  is  32349
1,\!000,\! 000  is  1000000
$32349.$  is  32349
$5.$  is  5
\(5.\)  is  5
$\frac{1}{2}.$  is  \frac{1}{2}
$5.$.  is  5
$\sqrt{2}.$  is  \sqrt{2}
5  is  $5.$
$x = 5.$  is  5
1,\!234,\!567  is  1234567
1,\! 234,\! 567  is  1,234,567
1\,234\,567  is  1234567
1{,}234{,}567  is  1234567
$1,234.$  is  1234
\(1234.\)  is  1234
\[1234.\]  is  1234
$$1234.$$  is  1234
$x=3.$  is  3
$x = 3$.  is  3
\$32,\! 349  is  32349
32,\! 349 \text{ dollars}  is  32349
32,\!349.50  is  32349.5
$\frac{3}{4}.$  is  0.75
$\{1,2\}.$  is  1,2
\text{B.}  is  B
10,\! 000\pi  is  10000\pi
32,\!349  is  32349
32,349  is  32349
32\,349  is  32349
32{,}349  is  32349
32349.  is  32349
$32,\! 349$  is  32349
\$32,\!349  is  32349
32{,}349.  is  32349
32,\! 349 \text{ people}  is  32349
x = 32,\! 349  is  32349
32,349  is  32,\! 349
32,\!349  is  32,\! 349
x=32349  is  32,\! 349
12  is  $12.$
$12.$  is  $12.$
12.  is  $12.$
12.0  is  $12.$
3/4  is  \(\frac{3}{4}.\)
$\frac{3}{4}.$  is  \(\frac{3}{4}.\)
1234.5  is  1,\!234.5
$1,\!234.5.$  is  1,\!234.5
1,234.5  is  1,\!234.5
3  is  x=3.
x = 3  is  x=3.
$x=3.$  is  x=3.
Monday  is  \text{Monday.}
Monday.  is  \text{Monday.}
$\text{Monday}.$  is  \text{Monday.}
$x+1.$  is  x+1
$1+x$.  is  x+1
x+1.  is  x+1
$[1,2].$  is  [1,2]
[1,2].  is  [1,2]
""",
    "scientific notation": r"""
1.5e3  is not  150
1.5e3  is not  1.5
1e400  is not  0
1e99999999  is not  0
1.5e3.5  is not  1500
2e  is not  2
1.5e3  is not  15000
1.5e-3  is not  1500
1.5 e3  is not  1500
e3  is not  1000
1.5e  is not  1.5
1e3e3  is not  1000
5e-05  is not  5
5\text{e-}05  is not  0.00005
1.5e2  is not  1500
1.5e4  is not  1500
1.5  is not  1500
e3  is not  1500
1.5e  is not  1500
1.5ee3  is not  1500
1.5 e 3  is not  1500
1.5e3e  is not  1500
1.5e3x  is not  1500
1.5x3  is not  1500
1.5e1000  is not  1500
5  is not  5e-05
0.0005  is not  5e-05
0.000005  is not  5e-05
5e5  is not  5e-05
5e  is not  5e-05
0  is not  5e-05
5-05  is not  5e-05
5e-05e  is not  5e-05
1.5e3  is  1500
1500  is  1.5e3
1.5E3  is  1500
1.5e+3  is  1500
5e-05  is  0.00005
-2e-3  is  -0.002
1e6  is  1,000,000
1.5 \times 10^{3}  is  1.5e3
1.5 * 10^3  is  1500
1.5 × 10^{3}  is  1500
6.02e23  is  6.02 \times 10^{23}
1e3  is  1000
1E-3  is  0.001
2.5e+04  is  25000
-1.5e3  is  -1500
1.5e3  is  1.5E+3
1.5e03  is  1500
1.5e-3  is  0.0015
6.02\times10^{23}  is  6.02e23
6.02 \cdot 10^{23}  is  602e21
6.02 x 10^23  is  6.02e23
1.50e3 dollars  is  1500
$1.5e3$  is  1500
1e5, 2  is  2, 100000
0.00005  is  5e-05
15e2  is  1500
1500e0  is  1500
1.5\times10^3  is  1500
1.5\cdot 10^{3}  is  1500
1.5*10^3  is  1500
x=1.5e3  is  1500
1.5e3 dollars  is  1500
15000e-1  is  1500
1,500  is  1.5e3
1.5\times 10^3  is  1.5e3
1.5E3  is  1.5e3
1500.0  is  1.5e3
5e-5  is  5e-05
5\times10^{-5}  is  5e-05
5E-05  is  5e-05
\frac{1}{20000}  is  5e-05
0.005%  is  5e-05
602000000000000000000000  is  6.02e23
""",
    "currencies": r"""
3 cents  is not  \$3
\$3  is not  3 \text{ cents}
3 pence  is not  £3
€5  is not  \$5
5 euros  is not  \$5
\$3, \$5  is not  €3, €5
\$5 per day  is not  \$5 per hour
5 dollars/day  is not  5 dollars/hour
\$5  is not  5 cm
5 cm  is not  5 cents
5\%  is not  \$5
5 pounds  is not  \$5
\$5  is  5 \text{ dollars}
5 dollars  is  \$5
5 US dollars  is  \$5
5 Canadian dollars  is  \$5
5\$  is  \$5
5 euros  is  €5
5 pounds  is  £5
5 yen  is  ¥5
3¢  is  3 cents
3 pennies  is  3 cents
\$5 per hour  is  \$5
5 per hour  is  \$5
\$5  is  \$5 \text{ per hour}
18 apples  is not  \$18
3 cents, \$5  is not  \$3, \$5
3 cm, \$5  is not  \$3, \$5
3, €5  is not  \$3, 5
3 cents, 5 cents  is not  3, 5 \text{ dollars}
\$5 cents  is not  \$5
€5 dollars  is not  €5
€5\$  is not  €5
5 dollar cents  is not  \$5
5 miles per dollar  is not  5 dollars
5 pence  is not  5 cents
5 milhoes  is not  5
5 miljard  is not  5
3, \$5  is  \$3, \$5
18 each  is  \$18
18 profit  is  \$18
\$18  is  18 \text{ total}
5 British pounds  is  £5
5 GBP  is  £5
5 RMB  is  ¥5
\$12  is not  12 mph
5 mph  is not  5 dollars
\$18 profit  is  18 profit
-\$5  is  \$-5
\$3, \$5  is  \$5, \$3
""",
    "hedges are no units": r"""
5 probably  is not  5
5 approximately  is not  5
5\text{ approximately}  is not  5
5 roughly  is not  5
5 possibly  is not  5
5 perhaps  is not  5
5 hopefully  is not  5
5 guess  is not  5
5 guessing  is not  5
5 wrong  is not  5
5 \text{ is wrong}  is not  5
5 incorrect  is not  5
5 false  is not  5
5 never  is not  5
5 instead  is not  5
5 \text{ if even}  is not  5
5 but wait  is not  5
5 for even  is not  5
5 when positive  is not  5
5 with remainder  is not  5
5 almost  is not  5
5 about  is not  5
5 rounded down  is not  5
5 onwards  is not  5
5 also  is not  5
5 something  is not  5
5 unknown  is not  5
5 doubled  is not  5
5 tripled  is not  5
5 halved  is not  5
5 inverted  is not  5
5 reciprocal  is not  5
0.3 recurring  is not  0.3
0.3 repeating  is not  0.3
101 binary  is not  101
12 octal  is not  12
\sqrt{2} probably  is not  \sqrt{2}
5 families  is  5
5 fish  is  5
5 shillings  is  5
5 winning tickets  is  5
5 inversions  is  5
""",
    "sets, pairs and intervals": r"""
\{1, 2\}  is not  (1, 2)
\{2, 1\}  is not  (1, 2)
(1, 2)  is not  \{1, 2\}
\{1, 2, 3\}  is not  (1, 2, 3)
\{-1, 3\}  is not  -1 < x < 3
-1, 3  is not  -1 < x < 3
-1 \text{ and } 3  is not  -1 < x < 3
x = -1 \text{ or } x = 3  is not  -1 < x < 3
x = -1, 3  is not  (-1, 3)
1 < x < 2  is not  1, 2
x \in (1, 2)  is not  1, 2
(1, 2)  is not  x = 1 \text{ or } x = 2
\{1, 2\}  is not  x \in (1, 2)
\{1\}, \{2\}  is not  \{1, 2\}
\{\{1\}, \{2\}\}  is not  \{1, 2\}
\{1\} \cup \{2\}  is not  \{1, 2\}
\{1\} \cup \{2\}  is not  1, 2
\langle 2, 1 \rangle  is not  (1, 2)
\langle 5 \rangle  is not  5
\{(1, 2)\}  is not  (2, 1)
1234  is not  (1,234)
(1,234)  is not  1234
(1, 234)  is  (1,234)
(-3,125)  is  (-3, 125)
1, 2  is  (1, 2)
x = 1, y = 2  is  (1, 2)
\{(1, 2)\}  is  (1, 2)
\{ (1, 2) \}  is  (1, 2)
\langle 1, 2 \rangle  is  (1, 2)
\left\langle 1, 2, 3 \right\rangle  is  (1, 2, 3)
\{1, 2\}  is  1, 2
x \in \{1, 2\}  is  1, 2
(-\infty, 1) \cup \{2\}  is  x < 1 \text{ or } x = 2
\{2\} \cup [0, 1]  is  [0, 1] \cup \{2\}
\mathbb R  is  \mathbb{R}
""",
    "other signs": r"""
2π  is  2\pi
π/2  is  \frac{\pi}{2}
πr²  is  \pi r^2
–12  is  -12
(–2, 3)  is  (-2, 3)
x² + 1  is  x^2+1
x¹⁰  is  x^{10}
x⁻¹  is  \frac1x
2¹⁰  is  1024
1.5 × 10³  is  1500
|x|  is  \lvert x \rvert
\dbinom{n}{k}  is  \binom{n}{k}
\operatorname{arctan} 2  is  \arctan 2
\mathrm{ln}\,2  is  \ln 2
\operatorname{sin}x  is  \sin x
4²  is not  4
4²  is not  42
x²  is not  x^3
3π  is not  2\pi
5–6  is not  5
\lvert -3 \rvert  is not  3
\operatorname{sin} 30^\circ  is not  \frac12
\operatorname{sec}x  is not  \sin x
""",
    "usual spellings": r"""
1  is not  1,-2
-2  is not  1,-2
1,2  is not  1,-2
-1,2  is not  1,-2
(1,-2) and 3  is not  1,-2
(-1,3)  is not  (3,-1)
3  is not  (3,-1)
-1  is not  (3,-1)
x=-1,y=3  is not  (3,-1)
y=3,x=-1  is not  (3,-1)
[3,-1]  is not  (3,-1)
(2,5)  is not  [2,5)
[2,5]  is not  [2,5)
(2,5]  is not  [2,5)
2<x<5  is not  [2,5)
2  is not  [2,5)
5  is not  [2,5)
[2,5) or 7  is not  [2,5)
B  is not  \text{(C)}
A or C  is not  \text{(C)}
C or D  is not  \text{(C)}
A, C  is not  \text{(C)}
(C) or (D)  is not  \text{(C)}
CD  is not  \text{(C)}
-16  is not  16
16i  is not  16
16x  is not  16
1.6  is not  16
16,17  is not  16
16 17  is not  16
160  is not  16
4^{2}+0  is not  16
16 or 17  is not  16
16.5  is not  16
x=16 or x=17  is not  16
(16, 16)  is not  16
16 hundred  is not  16
16:1  is not  16
<16  is not  16
16+  is not  16
16-  is not  16
16/  is not  16
16^  is not  16
1 6  is not  16
16\sqrt{1}  is not  16
16 \pm 0  is not  16
±16  is not  16
\pm 16  is not  16
|16|  is not  16
\sqrt{256}  is not  16
4*4  is not  16
2^2^2  is not  16
0x10  is not  16
10_{16}  is not  16
x=-1, y=3  is not  x = 3, y = -1
x=3  is not  x = 3, y = -1
y=-1  is not  x = 3, y = -1
(−1,3)  is not  x = 3, y = -1
A, C  is not  A, C, E
A, C, D  is not  A, C, E
ACE  is not  A, C, E
10 percent of 5  is not  10\%
0.01  is not  10\%
11%  is not  10\%
1  is not  10\%
1%  is not  10\%
25  is not  x^2+y^2=25
x^2+y^2  is not  x^2+y^2=25
x^2+y^2=5  is not  x^2+y^2=25
x+y=5  is not  x^2+y^2=25
x^2-y^2=25  is not  x^2+y^2=25
2k  is not  2k+2
4k  is not  2k+2
k+1  is not  2k+2
2k+2k  is not  2k+2
2k-2  is not  2k+2
No  is not  \text{Yes}
Yes or No  is not  \text{Yes}
Yes and No  is not  \text{Yes}
not Yes  is not  \text{Yes}
Yes, no  is not  \text{Yes}
June 21  is not  \text{June 20}
June 2  is not  \text{June 20}
20  is not  \text{June 20}
July 20  is not  \text{June 20}
\begin{pmatrix}2\\1\end{pmatrix}  is not  \begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix}1&2\end{pmatrix}  is not  \begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix}1\\2\\3\end{pmatrix}  is not  \begin{pmatrix}1\\2\end{pmatrix}
1  is not  \begin{pmatrix}1\\2\end{pmatrix}
3  is not  \begin{pmatrix}1\\2\end{pmatrix}
91  is not  90^\circ
\frac{\pi}{2}  is not  90^\circ
9  is not  90^\circ
90^\circ + 0  is not  90^\circ
0^\circ  is not  90^\circ
3:2  is not  2:3
\frac{2}{3} : 2  is not  2:3
2  is not  2:3
4:7  is not  2:3
45  is not  \frac{\pi}{4}
\frac{\pi}{2}  is not  \frac{\pi}{4}
0.785  is not  \frac{\pi}{4}
\arctan 1  is not  \frac{\pi}{4}
\pi  is not  \frac{\pi}{4}
42  is not  52_8
52_9  is not  52_8
25_8  is not  52_8
(3,\pi/2)  is  \left( 3, \frac{\pi}{2} \right)
(3, \frac{\pi}{2})  is  \left( 3, \frac{\pi}{2} \right)
\left(3, \frac{1}{2}\pi\right)  is  \left( 3, \frac{\pi}{2} \right)
(3.0,\pi/2)  is  \left( 3, \frac{\pi}{2} \right)
p-q  is  p - q
-q+p  is  p - q
p - q.  is  p - q
90  is  90^\circ
90^{\circ}  is  90^\circ
90\text{ degrees}  is  90^\circ
90 degrees  is  90^\circ
90°  is  90^\circ
3 \sqrt{13}  is  3\sqrt{13}
\sqrt{117}  is  3\sqrt{13}
3\cdot\sqrt{13}  is  3\sqrt{13}
3*\sqrt{13}  is  3\sqrt{13}
3\times\sqrt{13}  is  3\sqrt{13}
-2, 1  is  1,-2
1 and -2  is  1,-2
1 \text{ and } -2  is  1,-2
\{-2,1\}  is  1,-2
x=1, x=-2  is  1,-2
x = 1 \text{ or } x=-2  is  1,-2
x=-2,1  is  1,-2
3,5,7  is  3, 5, 7
7, 5, 3  is  3, 5, 7
\{3,5,7\}  is  3, 5, 7
3, 5, and 7  is  3, 5, 7
3, 5, \text{ and } 7  is  3, 5, 7
y=2x+3  is  y = 2x + 3
y = 3+2x  is  y = 2x + 3
2x+3  is  y = 2x + 3
x^3 + 3x - 6  is  x^3+3x-6
3x+x^3-6  is  x^3+3x-6
-6+3x+x^3  is  x^3+3x-6
f(x)=x^3+3x-6  is  x^3+3x-6
p(x) = x^3+3x-6  is  x^3+3x-6
y = x^3+3x-6  is  x^3+3x-6
\begin{pmatrix}-18\\-49\\96\end{pmatrix}  is  \begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}
\begin{bmatrix}-18\\-49\\96\end{bmatrix}  is  \begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}
\left(\begin{matrix}-18\\-49\\96\end{matrix}\right)  is  \begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}
\left(\begin{array}{c}-18\\-49\\96\end{array}\right)  is  \begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}
\begin{pmatrix} \frac12 & 0 \\ 0 & 1 \end{pmatrix}  is  \begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix}
\begin{pmatrix} 0.5 & 0 \\[1ex] 0 & 1 \end{pmatrix}  is  \begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix}
A = \begin{pmatrix} \frac12 & 0 \\ 0 & 1 \end{pmatrix}  is  \begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix}
\cot{x}  is  \cot x
\cot(x)  is  \cot x
\frac{\cos x}{\sin x}  is  \cot x
\frac{1}{\tan x}  is  \cot x
(6, 31, -1)  is  (6,31,-1)
\left(6,31,-1\right)  is  (6,31,-1)
2(k+1)  is  2k+2
2+2k  is  2k+2
18.90  is  \$18.90
18.9  is  \$18.90
$18.90  is  \$18.90
\$18.9  is  \$18.90
\$ 18.90  is  \$18.90
18.90 dollars  is  \$18.90
C  is  \text{(C)}
(C)  is  \text{(C)}
\text{C}  is  \text{(C)}
\textbf{(C)}  is  \text{(C)}
\mathrm{C}  is  \text{(C)}
C.  is  \text{(C)}
June 20  is  \text{June 20}
\text{June 20}  is  \text{June 20}
\text{june 20}  is  \text{June 20}
10%  is  10\%
10 percent  is  10\%
10 \%  is  10\%
0.1  is  10\%
10  is  10\%
\frac{1}{10}  is  10\%
x>5  is  (5, \infty)
(5,\infty)  is  (5, \infty)
x \in (5,\infty)  is  (5, \infty)
5<x  is  (5, \infty)
(5, +\infty)  is  (5, \infty)
(1,2] \cup [0,1)  is  [0,1)\cup(1,2]
0 \le x < 1 \text{ or } 1 < x \le 2  is  [0,1)\cup(1,2]
[0,1) \cup (1,2]  is  [0,1)\cup(1,2]
1+\sqrt{19}, 1-\sqrt{19}  is  1 \pm \sqrt{19}
1-\sqrt{19}, 1+\sqrt{19}  is  1 \pm \sqrt{19}
x = 1\pm\sqrt{19}  is  1 \pm \sqrt{19}
1\pm\sqrt{19}  is  1 \pm \sqrt{19}
\frac{3+\sqrt5}{2}, \frac{3-\sqrt5}{2}  is  \frac{3 \pm \sqrt{5}}{2}
\frac{3}{2} \pm \frac{\sqrt{5}}{2}  is  \frac{3 \pm \sqrt{5}}{2}
x=\frac{3\pm\sqrt5}{2}  is  \frac{3 \pm \sqrt{5}}{2}
2\cos(3x)  is  2\cos 3x
(\sin x)^2  is  \sin^2 x
\sin^2(x)  is  \sin^2 x
\frac{\sqrt{3}}{2}+\frac{\pi}{4}  is  \frac{\pi}{4} + \frac{\sqrt3}{2}
\frac{\pi+2\sqrt3}{4}  is  \frac{\pi}{4} + \frac{\sqrt3}{2}
\frac{2\sqrt{3} + \pi}{4}  is  \frac{\pi}{4} + \frac{\sqrt3}{2}
Yes  is  \text{Yes}
yes  is  \text{Yes}
\text{yes}  is  \text{Yes}
2^{1007}  is  2^{1007}
2^{-98}  is  \frac{1}{2^{98}}
1/2^{98}  is  \frac{1}{2^{98}}
10!  is  10!
3628800  is  10!
7(x-3)(x+3)  is  7(x+3)(x-3)
(1-3x)^2  is  (3x-1)^2
(3x-1)^2  is  (3x-1)^2
2:3  is  2:3
2 : 3  is  2:3
2\!:\!3  is  2:3
\text{2:3}  is  2:3
\frac{\pi}{6}, \frac{5\pi}{6}  is  \frac{5\pi}{6}, \frac{\pi}{6}
\frac16\pi, \frac56\pi  is  \frac{5\pi}{6}, \frac{\pi}{6}
x = \frac{\pi}{6}, \frac{5\pi}{6}  is  \frac{5\pi}{6}, \frac{\pi}{6}
52_8  is  52_8
52_{8}  is  52_8
52  is  52_8
\emptyset  is  \emptyset
\varnothing  is  \emptyset
x\ne 2  is  x \neq 2
(-\infty,2)\cup(2,\infty)  is  x \neq 2
\mathbb{R}\setminus\{2\}  is  x \neq 2
x \not= 2  is  x \neq 2
\frac{\sqrt6}{4}-\frac{\sqrt2}{4}  is  \frac{\sqrt{6}-\sqrt{2}}{4}
\frac{1}{4}(\sqrt6-\sqrt2)  is  \frac{\sqrt{6}-\sqrt{2}}{4}
\frac{-\sqrt2+\sqrt6}{4}  is  \frac{\sqrt{6}-\sqrt{2}}{4}
(\sqrt6-\sqrt2)/4  is  \frac{\sqrt{6}-\sqrt{2}}{4}
9\pi/4  is  \frac{9 \pi}{4}
2.25\pi  is  \frac{9 \pi}{4}
\frac94\pi  is  \frac{9 \pi}{4}
\frac{9}{4} \cdot \pi  is  \frac{9 \pi}{4}
9/4 \cdot \pi  is  \frac{9 \pi}{4}
\frac{-\sqrt{3}}{2}  is  -\frac{\sqrt{3}}{2}
-\sqrt{3}/2  is  -\frac{\sqrt{3}}{2}
-\frac12\sqrt3  is  -\frac{\sqrt{3}}{2}
-\dfrac{\sqrt{3}}{2}  is  -\frac{\sqrt{3}}{2}
7i-2  is  -2 + 7i
-2+7i  is  -2 + 7i
-2 + 7\cdot i  is  -2 + 7i
(-2+7i)  is  -2 + 7i
(-2) + 7i  is  -2 + 7i
0.\overline{3}  is  1/3
\frac{1}{3}  is  1/3
\dfrac{1}{3}  is  1/3
1 / 3  is  1/3
\frac{2}{6}  is  1/3
\tfrac13  is  1/3
3/4  is  \frac{3}{4}
0.75  is  \frac{3}{4}
75%  is  \frac{3}{4}
.75  is  \frac{3}{4}
0.750  is  \frac{3}{4}
\frac{3}{4}.  is  \frac{3}{4}
-\frac{-3}{4}  is  \frac{3}{4}
\frac{-3}{-4}  is  \frac{3}{4}
16  is  16
16.0  is  16
+16  is  16
16.00  is  16
$16$  is  16
n=16  is  16
16.  is  16
{16}  is  16
(16)  is  16
16\text{ cm}^2  is  16
16 cm^2  is  16
\mathbf{16}  is  16
y^2+x^2=25  is  x^2+y^2=25
x^2 + y^2 - 25 = 0  is  x^2+y^2=25
25 = x^2+y^2  is  x^2+y^2=25
4y+3x=12  is  3x+4y-12=0
3x+4y=12  is  3x+4y-12=0
6x+8y-24=0  is  3x+4y-12=0
x=3, y=-1  is  x = 3, y = -1
y=-1, x=3  is  x = 3, y = -1
x = 3 \text{ and } y = -1  is  x = 3, y = -1
(3,-1)  is  x = 3, y = -1
(x,y) = (3,-1)  is  x = 3, y = -1
(3, -1)  is  (3,-1)
(x,y) = (3,-1)  is  (3,-1)
x=3,y=-1  is  (3,-1)
(x, y) = \left(3, -1\right)  is  (3,-1)
A,C,E  is  A, C, E
E, C, A  is  A, C, E
A, C, and E  is  A, C, E
\text{A, C, E}  is  A, C, E
AB  is  AB
\ell  is  \ell
e  is  e
\mathrm{e}  is  e
2.718282  is  e
ba  is  ab
ab  is  ab
a b  is  ab
a*b  is  ab
a\cdot b  is  ab
(x+1)/(x-1)  is  \frac{x+1}{x-1}
\frac{1+x}{x-1}  is  \frac{x+1}{x-1}
-\frac{x+1}{1-x}  is  \frac{x+1}{x-1}
8 units  is  8
8 apples  is  8
8 \text{ inches}  is  8
2^3  is  8
8 in  is  8
8\mathrm{\,cm}  is  8
3/2  is  1.5
1\frac12  is  1.5
1 1/2  is  1.5
1.50  is  1.5
1 \frac{1}{2}  is  1.5
2.5  is  2\frac{1}{2}
5/2  is  2\frac{1}{2}
\frac52  is  2\frac{1}{2}
-3  is  -3
- 3  is  -3
-3^{\circ}  is  -3
x=-3  is  -3
−3  is  -3
b^2+a^2  is  a^2+b^2
a^2 + b^2  is  a^2+b^2
2^{1/3}  is  \sqrt[3]{2}
2^{\frac{1}{3}}  is  \sqrt[3]{2}
\sqrt[3]{2}  is  \sqrt[3]{2}
12  is  12 miles
2 \le x < 5  is  [2,5)
2\leq x<5  is  [2,5)
x\in[2,5)  is  [2,5)
2<=x<5  is  [2,5)
x \le 3  is  (-\infty, 3]
x\leq3  is  (-\infty, 3]
(-\infty,3]  is  (-\infty, 3]
(2,5)  is  2 < x < 5
2<x<5  is  2 < x < 5
x \in (2,5)  is  2 < x < 5
5>x>2  is  2 < x < 5
1/2  is  0.5
.5  is  0.5
\frac12  is  0.5
50%  is  0.5
2^{-1}  is  0.5
100000  is  100,000
10^5  is  100,000
1e5  is  100,000
100{,}000  is  100,000
1 \times 10^5  is  100,000
100\,000  is  100,000
\frac{13}{6}  is  \frac{13}{6} \text{ hours}
13/6 \text{ hours}  is  \frac{13}{6} \text{ hours}
2\frac16  is  \frac{13}{6} \text{ hours}
2+\sqrt{5}  is  \sqrt{5}+2
\sqrt5 + 2  is  \sqrt{5}+2
4\sqrt3+6\sqrt2  is  6\sqrt{2}+4\sqrt{3}
2(3\sqrt2+2\sqrt3)  is  6\sqrt{2}+4\sqrt{3}
2\left(2\sqrt3+3\sqrt2\right)  is  6\sqrt{2}+4\sqrt{3}
\frac{2}{3}+\frac{\sqrt{3}}{3}  is  \frac{2+\sqrt{3}}{3}
\frac13(2+\sqrt3)  is  \frac{2+\sqrt{3}}{3}
\frac{2}{3}+\frac{1}{\sqrt{3}}  is  \frac{2+\sqrt{3}}{3}
\frac{e^2}{4}  is  \frac{1}{4}e^{2}
e^2/4  is  \frac{1}{4}e^{2}
0.25e^2  is  \frac{1}{4}e^{2}
\ln(2)  is  \ln 2
\ln{2}  is  \ln 2
-\ln 2+1  is  1-\ln 2
1-\ln(2)  is  1-\ln 2
f(x) = 2x  is  f(x)=2x
2x  is  f(x)=2x
0.0098  is  9.8 \times 10^{-3}
9.8e-3  is  9.8 \times 10^{-3}
9.8\cdot10^{-3}  is  9.8 \times 10^{-3}
""",
}
